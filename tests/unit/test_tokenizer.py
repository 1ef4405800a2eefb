"""Tokenizers: the same ids as the library that trained them, from every format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import AddedToken, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import PreTokenizer
from transformers import AutoTokenizer

from chiplet.errors import ConfigError, ModelError, RequestError
from chiplet.formats.catalogue import pull
from chiplet.text.tokenizer import load_tokenizer
from tests.unit.vocabularies import (
    SPECIAL,
    TEXTS,
    byte_level_backend,
    default_backend,
    train_sentencepiece,
    write_byte_level_gguf,
    write_sentencepiece_gguf,
)

SPECIAL_TEXT = "<|im_start|>user\nhi<|im_end|>\n<|endoftext|>"


@pytest.fixture(scope="module")
def backend() -> Backend:
    return default_backend()


@pytest.fixture(scope="module")
def processor() -> sentencepiece.SentencePieceProcessor:
    return train_sentencepiece()


def _folder(path: Path, backend: Backend, **config: Any) -> Path:
    path.mkdir(exist_ok=True)
    backend.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


def _digits_apart() -> PreTokenizer:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])


@pytest.mark.parametrize("name", ["gpt-2", "smollm"])
def test_a_byte_level_gguf_splits_as_the_original(tmp_path: Path, name: str) -> None:
    original = byte_level_backend(
        _digits_apart() if name == "smollm" else pre_tokenizers.ByteLevel(add_prefix_space=False)
    )
    path = write_byte_level_gguf(tmp_path / "m.gguf", original, pre=name)
    tokenizer = load_tokenizer(path)
    assert tokenizer.vocab_size == original.get_vocab_size()
    for text in (*TEXTS, SPECIAL_TEXT, "\u0661\u0662\u00b2 \u00b3\u00bd"):
        ids = tokenizer.encode(text)
        assert ids == original.encode(text).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
        assert tokenizer.decode(ids) == original.decode(ids)


@pytest.mark.parametrize(
    ("name", "text", "pieces"),
    [
        ("llama-bpe", "I'LL pay 1234567!?\n\n  x", "I|'LL|_pay|_|123|456|7|!?\n\n|_|_x"),
        ("qwen2", "We'Ve 123 a_b", "We|'Ve|_|1|2|3|_a|_b".replace("_b", "\\b")),
        ("default", "a+b=12345 c", "a|+|b|=|123|45|_c"),
        ("gpt-2", "we've 1234  x", "we|'ve|_1234|_|_x"),
        ("smollm", "v12 x", "v|1|2|_x"),
    ],
)
def test_pre_tokenizers(
    tmp_path: Path, backend: Backend, name: str, text: str, pieces: str
) -> None:
    path = write_byte_level_gguf(tmp_path / "m.gguf", backend, pre=name)
    split = load_tokenizer(path)._backend.pre_tokenizer.pre_tokenize_str(text)
    expected = pieces.replace("_", " ").replace("\\", "_").split("|")
    assert [text[begin:end] for _, (begin, end) in split] == expected


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({}, (None, None)),
        ({"add_bos_token": True}, (1, None)),
        ({"add_bos_token": True, "add_eos_token": True}, (1, 2)),
        ({"pre": "llama-bpe"}, (1, None)),
        ({"pre": "llama-bpe", "add_bos_token": False}, (None, None)),
    ],
)
def test_ends_of_a_text_as_the_gguf_says(
    tmp_path: Path, backend: Backend, facts: dict[str, Any], expected: tuple[int | None, ...]
) -> None:
    tokenizer = load_tokenizer(write_byte_level_gguf(tmp_path / "m.gguf", backend, **facts))
    bare = tokenizer.encode("Hello", add_special_tokens=False)
    begin, end = expected
    whole = [*([begin] if begin else []), *bare, *([end] if end else [])]
    assert tokenizer.encode("Hello") == whole
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    assert tokenizer.special_tokens == {"bos_token": SPECIAL[1], "eos_token": SPECIAL[2]}
    assert tokenizer.special_token_ids == {0, 1, 2}


def test_a_sentencepiece_gguf_splits_as_sentencepiece(
    tmp_path: Path, processor: sentencepiece.SentencePieceProcessor
) -> None:
    tokenizer = load_tokenizer(write_sentencepiece_gguf(tmp_path / "m.gguf", processor))
    for text in TEXTS:
        text = text.replace("\x00", "")  # the trainer's library ends a text there
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == processor.encode(text)
        assert tokenizer.encode(text) == [1, *ids]
        assert tokenizer.decode([1, *ids, 2]) == text
        assert tokenizer.decode(ids) == processor.decode(ids)
    assert tokenizer.token_bytes(processor.piece_to_id("<0xE4>")) == b"\xe4"
    assert tokenizer.token_text(processor.piece_to_id("\u2581the")) == " the"


def test_a_hugging_face_folder(tmp_path: Path, backend: Backend) -> None:
    folder = _folder(
        tmp_path / "m",
        backend,
        bos_token={"__type": "AddedToken", "content": SPECIAL[1], "special": True},
        eos_token=SPECIAL[2],
        pad_token=None,
        chat_template=[{"name": "tool", "template": "x"}, {"name": "default", "template": "y"}],
    )
    tokenizer = load_tokenizer(folder)
    assert tokenizer.chat_template == "y"
    assert tokenizer.special_tokens == {"bos_token": SPECIAL[1], "eos_token": SPECIAL[2]}
    theirs = AutoTokenizer.from_pretrained(folder)
    for text in (*TEXTS, SPECIAL_TEXT):
        assert tokenizer.encode(text) == theirs.encode(text)
    (folder / "chat_template.jinja").write_text("z")
    assert load_tokenizer(folder).chat_template == "z"
    # A file of the folder stands for it, and so does the folder beside a config.json.
    assert load_tokenizer(folder / "tokenizer.json").chat_template == "z"
    (folder / "config.json").write_text("{}")
    assert load_tokenizer(folder / "config.json").chat_template == "z"


def test_ends_of_a_text_as_the_folder_says(tmp_path: Path) -> None:
    backend = default_backend()
    roles = {"bos_token": SPECIAL[1], "eos_token": SPECIAL[2]}
    bare = backend.encode("Hello").ids
    backend.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL[1]} $A", special_tokens=[(SPECIAL[1], 1)]
    )
    assert load_tokenizer(_folder(tmp_path, backend, **roles)).encode("Hello") == [1, *bare]
    # Flags beside a tokenizer.json say how it was made, and change nothing.
    flagged = _folder(tmp_path, backend, **roles, add_bos_token=False, add_eos_token=True)
    assert load_tokenizer(flagged).encode("Hello") == [1, *bare]
    assert AutoTokenizer.from_pretrained(flagged).encode("Hello") == [1, *bare]


def test_truncation_left_over_from_training_is_off(tmp_path: Path) -> None:
    backend = default_backend()
    backend.enable_truncation(4)
    backend.enable_padding(length=8)
    tokenizer = load_tokenizer(_folder(tmp_path, backend))
    assert tokenizer.decode(tokenizer.encode("a" * 50 + " long text")) == "a" * 50 + " long text"


def test_added_words_are_text_that_is_never_split(tmp_path: Path) -> None:
    backend = default_backend()
    backend.add_tokens([AddedToken("<my word>", normalized=False)])
    tokenizer = load_tokenizer(_folder(tmp_path, backend))
    token_id = tokenizer.token_id("<my word>")
    assert token_id in tokenizer.encode("a<my word>b")
    assert tokenizer.decode(tokenizer.encode("a<my word>b")) == "a<my word>b"


def test_ids_that_stand_for_nothing_add_nothing(tmp_path: Path, backend: Backend) -> None:
    tokenizer = load_tokenizer(_folder(tmp_path, backend))
    ids = tokenizer.encode("Hello")
    assert tokenizer.decode([-1, *ids, 10**6, 2**40]) == "Hello"
    assert tokenizer.token_bytes(10**6) == b""


def test_half_a_surrogate_pair_is_the_clients_mistake(tmp_path: Path, backend: Backend) -> None:
    tokenizer = load_tokenizer(_folder(tmp_path, backend))
    with pytest.raises(RequestError, match="half of a surrogate pair"):
        tokenizer.encode("ab\ud800")


def test_another_tokenizer_and_template_can_be_named(tmp_path: Path, backend: Backend) -> None:
    folder = _folder(tmp_path / "m", backend, chat_template="own")
    gguf_path = write_byte_level_gguf(tmp_path / "m.gguf", backend, chat_template="other")
    template_path = tmp_path / "t.jinja"
    template_path.write_text("given")
    assert load_tokenizer(gguf_path).chat_template == "other"
    assert load_tokenizer(gguf_path, str(folder)).chat_template == "own"
    assert load_tokenizer(folder, str(gguf_path), str(template_path)).chat_template == "given"


def test_what_cannot_be_loaded_is_refused(tmp_path: Path, backend: Backend) -> None:
    with pytest.raises(ModelError, match="no tokenizer at"):
        load_tokenizer(tmp_path)
    with pytest.raises(ModelError, match=r"no tokenizer at .*nothing"):
        load_tokenizer(tmp_path, str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match=r"chat template .*nothing"):
        load_tokenizer(_folder(tmp_path / "m", backend), None, str(tmp_path / "nothing"))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)
    words = Backend(WordLevel({"a": 0}))
    with pytest.raises(ModelError, match=r"decoder \(none\) is not supported"):
        load_tokenizer(_folder(tmp_path / "w", words))


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"pre": "unheard-of"}, "supported: default, gpt-2, smollm"),
        ({"model": "bert"}, "supported: gpt2, llama"),
        ({"model": "llama"}, "have 0 scores"),
        ({"eos_token_id": 9999}, "eos_token_id is 9999"),
    ],
)
def test_ggufs_that_are_refused(
    tmp_path: Path, backend: Backend, facts: dict[str, Any], said: str
) -> None:
    with pytest.raises(ModelError, match=said):
        load_tokenizer(write_byte_level_gguf(tmp_path / "m.gguf", backend, **facts))


@pytest.mark.model
@pytest.mark.slow
def test_the_demo_model_against_transformers() -> None:
    path = pull("smollm2-135m", progress=False)
    tokenizer = load_tokenizer(path)
    theirs = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    assert tokenizer.vocab_size == 49152
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    # Transformers does not read the name of the pre-tokenizer; this is the one of SmolLM2's own
    # tokenizer.json.
    theirs.backend_tokenizer.pre_tokenizer = _digits_apart()
    for text in (*TEXTS, SPECIAL_TEXT, "\u0661\u0662\u00b2 \u00b3\u00bd"):
        ids = tokenizer.encode(text)
        assert ids == theirs.encode(text)
        for skip in (True, False):
            assert tokenizer.decode(ids, skip_special_tokens=skip) == theirs.decode(
                ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False
            )


def test_a_long_text_gives_the_ids_of_the_library(tmp_path: Path, backend: Backend) -> None:
    tokenizer = load_tokenizer(_folder(tmp_path / "model", backend))
    text = " ".join(TEXTS) * 400
    assert len(text) > 8192
    assert tokenizer.encode(text) == backend.encode(text).ids
    assert tokenizer.longest_token_bytes == max(
        len(tokenizer.token_bytes(token_id)) for token_id in range(tokenizer.vocab_size)
    )
    with pytest.raises(RequestError, match="surrogate"):
        tokenizer.encode(text + "\ud800")
