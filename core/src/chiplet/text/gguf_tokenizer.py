"""The tokenizer inside a GGUF file, built from the file's own vocabulary.

Source: the `tokenizer.ggml` keys of the GGUF specification; the pre-tokenizers that the names
under `tokenizer.ggml.pre` stand for, in llama-vocab.cpp of the llama.cpp project.
"""

from __future__ import annotations

from enum import IntEnum

from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import PreTokenizer
from tokenizers.processors import TemplateProcessing

from chiplet.errors import ModelError
from chiplet.formats.gguf_file import GgufFile
from chiplet.text.tokenizer_parts import TokenizerParts

_SPACE = "\u2581"  # stands for a space in sentencepiece vocabularies
_GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CASELESS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA_3 = _CASELESS.format(digits=r"\p{N}{1,3}")
_QWEN_2 = _CASELESS.format(digits=r"\p{N}")
# Regular expressions by name; each one splits what those before it left whole.
_PRE_TOKENIZERS = {
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT_2, r"\p{N}+", r"[0-9][0-9][0-9]"),
    "gpt-2": (_GPT_2,),
    "smollm": (r"\p{N}", _GPT_2),
    "starcoder": (r"\p{N}", _GPT_2),
    "llama-bpe": (_LLAMA_3,),
    "llama3": (_LLAMA_3,),
    "llama-v3": (_LLAMA_3,),
    "qwen2": (_QWEN_2,),
}
_LLAMA_3_NAMES = ("llama-bpe", "llama3", "llama-v3")
_ROLES = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
    "sep_token": "seperator_token_id",  # spelled so in the specification
    "mask_token": "mask_token_id",
}


class _TokenType(IntEnum):
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4


def read_gguf_tokenizer(file: GgufFile) -> TokenizerParts:
    """The tokenizer in a GGUF file.

    Raises:
        ModelError: the file has none, or one of an unsupported kind.
    """
    tokens = file.texts("tokenizer.ggml.tokens")
    if not tokens:
        raise ModelError(
            f"{file.path} has no tokenizer.", remedy="Name one with '--tokenizer-path'."
        )
    kind = file.text("tokenizer.ggml.model")
    if kind == "gpt2":
        backend = _byte_level_backend(file, tokens)
    elif kind == "llama":
        backend = _sentencepiece_backend(file, tokens)
    else:
        raise ModelError(
            f"{file.path}: tokenizer {kind!r} is not supported; supported: gpt2, llama.",
            remedy="Name another tokenizer with '--tokenizer-path'.",
        )
    _add_special_tokens(backend, file, tokens)
    roles = _roles(file, tokens)
    _add_ends(backend, file, roles)
    return TokenizerParts(backend, roles, file.text("tokenizer.chat_template"))


def _byte_level_backend(file: GgufFile, tokens: list[str]) -> Backend:
    name = _pre_name(file)
    merges = [_pair(merge) for merge in file.texts("tokenizer.ggml.merges")]
    model = BPE(
        vocab=dict(zip(tokens, range(len(tokens)), strict=True)),
        merges=merges,
        ignore_merges=name in _LLAMA_3_NAMES,
    )
    backend = Backend(model)
    splits: list[PreTokenizer] = [
        pre_tokenizers.Split(Regex(each), behavior="isolated") for each in _PRE_TOKENIZERS[name]
    ]
    has_prefix = file.flag("tokenizer.ggml.add_space_prefix", False)
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=has_prefix, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, to_bytes])
    backend.decoder = decoders.ByteLevel()
    return backend


def _pre_name(file: GgufFile) -> str:
    name = file.text("tokenizer.ggml.pre") or "default"
    if name not in _PRE_TOKENIZERS:
        raise ModelError(
            f"{file.path}: pre-tokenizer {name!r} is not supported; supported: "
            f"{', '.join(_PRE_TOKENIZERS)}.",
            remedy="Name another tokenizer with '--tokenizer-path'.",
        )
    return name


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right


def _sentencepiece_backend(file: GgufFile, tokens: list[str]) -> Backend:
    scores = file.numbers("tokenizer.ggml.scores")
    if len(scores) != len(tokens):
        raise ModelError(
            f"{file.path}: {len(tokens)} tokens have {len(scores)} scores.",
            remedy="Convert the model again with a current converter.",
        )
    vocab = dict(zip(tokens, range(len(tokens)), strict=True))
    unknown_id = file.integer("tokenizer.ggml.unknown_token_id")
    unknown = tokens[unknown_id] if unknown_id is not None else None
    model = BPE(
        vocab=vocab,
        merges=_merges(vocab, scores.tolist()),
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=True,
    )
    backend = Backend(model)
    has_prefix = file.flag("tokenizer.ggml.add_space_prefix", True)
    steps = [normalizers.Prepend(_SPACE)] if has_prefix else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if has_prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return backend


def _merges(vocab: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """All ways to put a token together from two others, those of the best token first.

    A sentencepiece vocabulary states no merges: of all neighbours that make a token, the pair
    that makes the one with the highest score is joined first.
    """
    found: list[tuple[float, int, int, str, str]] = []
    for token, token_id in vocab.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocab and right in vocab:
                found.append((-scores[token_id], token_id, vocab[left], left, right))
    found.sort()
    return [(left, right) for *_, left, right in found]


def _add_special_tokens(backend: Backend, file: GgufFile, tokens: list[str]) -> None:
    """Tells the backend which tokens are never split, and which of those are not text."""
    types = file.numbers("tokenizer.ggml.token_type").tolist()
    special: list[AddedToken] = []
    whole: list[AddedToken] = []
    for token, token_type in zip(tokens, types, strict=False):
        if token_type in (_TokenType.CONTROL, _TokenType.UNKNOWN):
            special.append(AddedToken(token, special=True, normalized=False))
        elif token_type == _TokenType.USER_DEFINED:
            whole.append(AddedToken(token, special=False, normalized=False))
    backend.add_special_tokens(special)
    backend.add_tokens(whole)


def _roles(file: GgufFile, tokens: list[str]) -> dict[str, str]:
    roles: dict[str, str] = {}
    for role, key in _ROLES.items():
        token_id = file.integer(f"tokenizer.ggml.{key}")
        if token_id is None:
            continue
        if not 0 <= token_id < len(tokens):
            raise ModelError(
                f"{file.path}: tokenizer.ggml.{key} is {token_id}; allowed: 0 to {len(tokens) - 1}."
            )
        roles[role] = tokens[token_id]
    return roles


def _add_ends(backend: Backend, file: GgufFile, roles: dict[str, str]) -> None:
    is_sentencepiece = file.text("tokenizer.ggml.model") == "llama"
    # Files that do not say: these two families were trained with a token at the beginning.
    has_begin = is_sentencepiece or file.text("tokenizer.ggml.pre") in _LLAMA_3_NAMES
    has_begin = file.flag("tokenizer.ggml.add_bos_token", has_begin)
    has_end = file.flag("tokenizer.ggml.add_eos_token", False)
    begin = roles.get("bos_token") if has_begin else None
    end = roles.get("eos_token") if has_end else None
    backend.post_processor = TemplateProcessing(
        single=[text for text in (begin, "$A", end) if text is not None],
        special_tokens=[
            (text, backend.token_to_id(text)) for text in (begin, end) if text is not None
        ],
    )
