"""Chat templates: the text Transformers makes, and plain words where a template refuses."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer

from chiplet.errors import ConfigError, RequestError
from chiplet.text.chat import apply_chat_template
from chiplet.text.template import check_template
from chiplet.text.tokenizer import Tokenizer, load_tokenizer
from tests.unit.vocabularies import default_backend, write_byte_level_gguf

SMOLLM = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are helpful<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PECULIAR = """{{ bos_token }}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {%- generation %}
[{{ message.content | trim }}]
        {%- endgeneration %}
    {%- else %}
        {%- if message.role == 'skipped' %}{% continue %}{% endif %}
({{ message['content'] }})
    {%- endif %}
{%- endfor %}
{%- if tools %}{{ tools | tojson(indent=2) }}{% endif %}
{{- undefined_name }}{{ eos_token }}
"""
CHAT = [
    {"role": "system", "content": "Be <brief> & kind."},
    {"role": "user", "content": "na\u00efve?\n"},
    {"role": "assistant", "content": " yes "},
]
TOOLS = [{"type": "function", "function": {"name": "f<\u00e9>", "parameters": {"b": 1, "a": []}}}]


@pytest.fixture(scope="module")
def backend() -> Backend:
    return default_backend()


def _tokenizer(folder: Path, backend: Backend, template: str | None) -> Tokenizer:
    path = folder / "m.gguf"
    return load_tokenizer(write_byte_level_gguf(path, backend, chat_template=template))


@pytest.mark.parametrize("template", [SMOLLM, PECULIAR])
@pytest.mark.parametrize("messages", [CHAT, CHAT[1:], CHAT[1:2]])
@pytest.mark.parametrize("is_generating", [True, False])
@pytest.mark.parametrize("tools", [None, TOOLS])
def test_the_text_is_that_of_transformers(
    tmp_path: Path,
    backend: Backend,
    template: str,
    messages: list[dict[str, Any]],
    is_generating: bool,
    tools: list[dict[str, Any]] | None,
) -> None:
    ours = _tokenizer(tmp_path, backend, template)
    folder = tmp_path / "theirs"
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    theirs = AutoTokenizer.from_pretrained(folder, **ours.special_tokens)
    theirs.chat_template = template
    expected = theirs.apply_chat_template(
        messages, tools=tools, add_generation_prompt=is_generating, tokenize=False
    )
    got = apply_chat_template(ours, messages, add_generation_prompt=is_generating, tools=tools)
    assert got == expected


def test_parts_of_a_message_are_joined(tmp_path: Path, backend: Backend) -> None:
    tokenizer = _tokenizer(tmp_path, backend, "{{ messages[0].content }}")
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert apply_chat_template(tokenizer, [{"role": "user", "content": parts}]) == "one\ntwo"
    assert apply_chat_template(tokenizer, [{"role": "assistant", "content": None}]) == ""


def test_further_variables_and_the_date(tmp_path: Path, backend: Backend) -> None:
    tokenizer = _tokenizer(tmp_path, backend, "{{ mood }} {{ strftime_now('%Y') }}")
    text = apply_chat_template(tokenizer, CHAT, mood="gay")
    assert text in {f"gay {datetime.now().year + offset}" for offset in (0, -1)}


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"content": "x"}, "messages[0].role"),
        ({"role": "user", "content": 3}, "messages[0].content"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "messages[0].content"),
        ({"role": "user", "content": [{"type": "text", "text": 3}]}, "messages[0].content"),
        ({"role": "user", "content": ["x"]}, "messages[0].content"),
        ([{"role": "user", "content": "x"}], "messages[0]"),
    ],
)
def test_messages_that_are_refused(
    tmp_path: Path, backend: Backend, message: Any, param: str
) -> None:
    tokenizer = _tokenizer(tmp_path, backend, SMOLLM)
    with pytest.raises(RequestError) as caught:
        apply_chat_template(tokenizer, [message])
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].content + 1 }}", "refuses these messages"),
        ("{{ messages[9].content.x }}", "refuses these messages"),
        ("{% if %}", "refuses these messages"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% include 'other' %}", "refuses these messages"),
        ("{{ 1 // 0 }}", "refuses these messages"),
    ],
)
def test_templates_that_fail_are_request_errors(
    tmp_path: Path, backend: Backend, template: str, said: str
) -> None:
    tokenizer = _tokenizer(tmp_path, backend, template)
    with pytest.raises(RequestError, match=said):
        apply_chat_template(tokenizer, CHAT)


def test_no_template_says_what_to_do(tmp_path: Path, backend: Backend) -> None:
    tokenizer = _tokenizer(tmp_path, backend, None)
    with pytest.raises(RequestError, match="--chat-template"):
        apply_chat_template(tokenizer, CHAT)


def test_a_given_template_is_checked_when_loaded(tmp_path: Path, backend: Backend) -> None:
    check_template(SMOLLM)
    with pytest.raises(ConfigError, match="line 2"):
        check_template("fine\n{% if %}")
    path = tmp_path / "wrong.jinja"
    path.write_text("{{ x")
    gguf_path = write_byte_level_gguf(tmp_path / "m.gguf", backend)
    with pytest.raises(ConfigError, match="chat template is wrong in line 1"):
        load_tokenizer(gguf_path, None, str(path))
