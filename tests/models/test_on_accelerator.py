"""The demo model on an accelerator: tokens as on a CPU, sensible text, over HTTP too."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from chiplet import LLM, SamplingParams
from chiplet.config import DeviceOptions
from chiplet.plugins import choose_device, discover
from tests.models.demo_model import PROMPTS, greedy_after, load_in_transformers
from tests.server.server_process import ServerProcess, watched

pytestmark = [pytest.mark.device, pytest.mark.model]

GREEDY = SamplingParams(temperature=0, max_tokens=48, ignore_eos=True)
QUESTION = [{"role": "user", "content": "What is gravity?"}]


@pytest.fixture(scope="module")
def accelerator() -> str:
    """Device that is chosen where nobody names one, like 'cuda:0'."""
    plugins = discover(DeviceOptions())
    label = choose_device(plugins, DeviceOptions()).label
    plugins.shut_down()
    assert label.partition(":")[0] not in ("cpu", "reference"), "there is no accelerator here"
    return label


@pytest.fixture
def server(accelerator: str) -> Iterator[ServerProcess]:
    command = [sys.executable, "-m", "chiplet.cli", "serve", "--device", accelerator, "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with watched(process) as running:
        yield running


def test_greedy_tokens_in_float32_equal_transformers(accelerator: str) -> None:
    model = load_in_transformers()
    with LLM(device=accelerator, dtype="float32", max_total_tokens=8192) as llm:
        completions = llm.generate(PROMPTS, GREEDY)
    for each in completions:
        answer = each.answers[0].token_ids
        assert len(answer) == GREEDY.max_tokens
        assert list(answer) == greedy_after(model, each.prompt_token_ids, answer)


def test_many_behind_one_prefix_get_the_tokens_that_few_get(accelerator: str) -> None:
    """Many decodes share what they read of a prefix; twelve at a time are too few for that."""
    prefix = "Facts about the planets, their moons and the sun. " * 24
    prompts = [prefix + f"Number {number}:" for number in range(96)]
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    with LLM(device=accelerator, dtype="float32", max_total_tokens=65536) as llm:
        llm.generate(prefix, params)
        together = llm.generate(prompts, params)
        few = [
            each for at in range(0, 96, 12) for each in llm.generate(prompts[at : at + 12], params)
        ]
    assert all(each.num_cached_tokens >= 128 for each in together)
    for many, alone in zip(together, few, strict=True):
        assert many.answers[0].token_ids == alone.answers[0].token_ids


def test_text_in_bfloat16_is_sensible(accelerator: str) -> None:
    with LLM(device=accelerator, dtype="bfloat16", max_total_tokens=8192) as llm:
        answer = llm.chat(QUESTION, SamplingParams(temperature=0, max_tokens=64))
    assert "force" in answer.text


def test_it_is_served_over_http(server: ServerProcess) -> None:
    create = server.openai.chat.completions.create
    asked = {"model": "smollm2-135m", "messages": QUESTION, "temperature": 0, "max_tokens": 64}
    whole = create(**asked).choices[0].message.content
    assert "force" in whole
    pieces = [each.choices[0].delta.content or "" for each in create(**asked, stream=True)]
    assert len(pieces) > 8
    assert "".join(pieces) == whole
