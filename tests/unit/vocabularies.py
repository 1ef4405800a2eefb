"""Small tokenizers for tests, made from the licence's text: byte-level and sentencepiece."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import sentencepiece
from gguf import GGUFWriter
from tokenizers import AddedToken, decoders, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import PreTokenizer

CORPUS = (Path(__file__).parents[2] / "LICENSE").read_text()
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEXTS = (
    "",
    " ",
    "\n",
    "Hello world",
    "  leading and   many  spaces \n\n\t tabs\r\n ",
    "def f(x):\n    return x**2 + 12345  # don't, we'LL, I'M\n",
    "na\u00efve cafe\u0301 \u4f60\u597d\u4e16\u754c",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "1234567890 3.14159 1e-10 v2.0",
    "\u0395\u03bb\u03bb\u03b7\u03bd\u03b9\u03ba\u03ac \u0627\u0644\u0639\u0631\u0628",
    "\u0939\u093f\u0928\u094d\u0926\u0940",
    "\x00\x01\x7f\u00a0\u2028\ufeff",
    "http://example.org/a_b?c=d&e=%20 <html> $x^2 + y = ~z|",
    CORPUS,
)


def byte_level_backend(pre_tokenizer: PreTokenizer) -> Backend:
    """A byte-level BPE tokenizer with a few hundred tokens and three special ones."""
    backend = Backend(BPE())
    backend.pre_tokenizer = pre_tokenizer
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=[AddedToken(text, special=True, normalized=False) for text in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([CORPUS], trainer)
    return backend


def default_backend() -> Backend:
    """The byte-level tokenizer of GPT-2's kind."""
    return byte_level_backend(pre_tokenizers.ByteLevel(add_prefix_space=False))


def write_byte_level_gguf(path: Path, backend: Backend, **facts: Any) -> Path:
    """A GGUF file with nothing but a byte-level tokenizer."""
    described = json.loads(backend.to_str())["model"]
    vocab: dict[str, int] = described["vocab"]
    tokens = sorted(vocab, key=lambda token: vocab[token])
    types = [3 if token in SPECIAL else 1 for token in tokens]
    merges = [" ".join(pair) for pair in described["merges"]]
    defaults = {"model": "gpt2", "pre": "gpt-2", "bos_token_id": 1, "eos_token_id": 2}
    return _write(path, defaults | facts, tokens=tokens, token_type=types, merges=merges)


def train_sentencepiece() -> sentencepiece.SentencePieceProcessor:
    """A sentencepiece BPE model of Llama's kind, with byte tokens."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS.splitlines()),
        model_writer=model,
        model_type="bpe",
        vocab_size=800,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        split_digits=True,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def write_sentencepiece_gguf(
    path: Path, processor: sentencepiece.SentencePieceProcessor, **facts: Any
) -> Path:
    """A GGUF file with nothing but a sentencepiece tokenizer."""
    ids = range(processor.get_piece_size())
    types = [
        2 if processor.is_unknown(i) else 3 if processor.is_control(i)
        else 6 if processor.is_byte(i) else 1
        for i in ids
    ]  # fmt: skip
    defaults = {"model": "llama", "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
    return _write(
        path,
        defaults | facts,
        tokens=[processor.id_to_piece(i) for i in ids],
        scores=[processor.get_score(i) for i in ids],
        token_type=types,
    )


def _write(path: Path, facts: dict[str, Any], **arrays: list[Any]) -> Path:
    writer = GGUFWriter(path, "llama")
    for name, value in facts.items():
        key = f"tokenizer.ggml.{name}" if name != "chat_template" else "tokenizer.chat_template"
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif value is not None:
            writer.add_string(key, value)
    for name, values in arrays.items():
        writer.add_array(f"tokenizer.ggml.{name}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
