"""Tokenizer: text to token ids and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from chiplet.errors import ConfigError, ModelError, RequestError
from chiplet.formats.gguf_file import read_gguf
from chiplet.formats.model_files import find_gguf
from chiplet.text.gguf_tokenizer import read_gguf_tokenizer
from chiplet.text.hf_tokenizer import read_hf_tokenizer
from chiplet.text.template import check_template
from chiplet.text.token_bytes import find_spelling
from chiplet.text.tokenizer_parts import TokenizerParts

_MAX_TOKEN_ID = 2**31 - 1
_LONG_CHARACTERS = 8192


class Tokenizer:
    """Text to token ids and back.

    Decoding puts the tokens' bytes together and replaces what is not UTF-8 by U+FFFD, so that
    text decoded token by token equals text decoded at once.

    Attributes:
        vocab_size: tokens it knows, special ones included.
        chat_template: Jinja source, if there is one.
        special_tokens: text by role, like 'bos_token'.
        special_token_ids: tokens that are not text.
        strips_leading_space: decoding drops one space at the very beginning.
    """

    def __init__(self, parts: TokenizerParts) -> None:
        self._backend = parts.backend
        self._spelling = find_spelling(parts.backend)
        self._bytes: dict[int, bytes] = {}
        self.chat_template: str | None = parts.chat_template
        self.special_tokens: Mapping[str, str] = parts.special_tokens
        self.vocab_size: int = parts.backend.get_vocab_size(with_added_tokens=True)
        self.strips_leading_space: bool = self._spelling.strips_leading_space
        added = parts.backend.get_added_tokens_decoder()
        self.special_token_ids: frozenset[int] = frozenset(
            token_id for token_id, token in added.items() if token.special
        )

    @property
    def bos_token_id(self) -> int | None:
        """The token at the beginning of a text."""
        return self._role_id("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        """The token at the end of a text or a turn."""
        return self._role_id("eos_token")

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The token ids of a text.

        Special tokens spelled out in the text are recognised. With `add_special_tokens` those
        that the checkpoint wants around a text are added; a chat template writes its own.

        Raises:
            RequestError: the text is not valid Unicode.
        """
        try:
            if len(text) < _LONG_CHARACTERS:
                return self._backend.encode(text, add_special_tokens=add_special_tokens).ids
            # Other threads run meanwhile: only this call of the library lets go of the interpreter.
            batch = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
            return batch[0].ids
        except TypeError as error:  # what the library says to a text that is not valid Unicode
            raise RequestError(
                "The text has half of a surrogate pair; allowed: valid Unicode."
            ) from error

    def decode(self, token_ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The text of some token ids; ids that stand for nothing add nothing."""
        skipped = self.special_token_ids if skip_special_tokens else frozenset[int]()
        raw = b"".join(self.token_bytes(each) for each in token_ids if each not in skipped)
        if self.strips_leading_space:
            raw = raw.removeprefix(b" ")
        return raw.decode("utf-8", "replace")

    @cached_property
    def longest_token_bytes(self) -> int:
        """Most bytes that one token adds to a text."""
        return max(len(self.token_bytes(token_id)) for token_id in range(self.vocab_size))

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token adds to a text, perhaps only part of a character."""
        known = self._bytes.get(token_id)
        if known is None:
            token = self._token(token_id)
            known = b"" if token is None else self._spelling.to_bytes(token)
            self._bytes[token_id] = known
        return known

    def token_text(self, token_id: int) -> str:
        """The text of one token, U+FFFD in place of half a character."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def token_id(self, token: str) -> int | None:
        """The id of a token by its entry in the vocabulary."""
        return self._backend.token_to_id(token)

    def _token(self, token_id: int) -> str | None:
        is_id = 0 <= token_id <= _MAX_TOKEN_ID
        return self._backend.id_to_token(token_id) if is_id else None

    def _role_id(self, role: str) -> int | None:
        text = self.special_tokens.get(role)
        return None if text is None else self.token_id(text)


def load_tokenizer(
    model_path: Path, tokenizer_path: str | None = None, chat_template: str | None = None
) -> Tokenizer:
    """The tokenizer of a model.

    Args:
        model_path: a Hugging Face folder, a GGUF file, or a config.json beside a tokenizer.
        tokenizer_path: folder or file used instead.
        chat_template: Jinja file used instead of the checkpoint's own template.

    Raises:
        ModelError: there is no tokenizer, or one of an unsupported kind.
        ConfigError: the chat template cannot be read, or is wrong.
    """
    parts = _read_parts(Path(tokenizer_path).expanduser() if tokenizer_path else model_path)
    if chat_template is not None:
        parts = replace(parts, chat_template=_read_template(Path(chat_template).expanduser()))
    return Tokenizer(parts)


def _read_parts(path: Path) -> TokenizerParts:
    if not path.exists():
        raise ModelError(f"There is no tokenizer at {path}.", remedy="Check '--tokenizer-path'.")
    if path.is_dir() and (path / "tokenizer.json").is_file():
        return read_hf_tokenizer(path / "tokenizer.json")
    gguf_path = find_gguf(path)
    if gguf_path is not None:
        return read_gguf_tokenizer(read_gguf(gguf_path))
    if path.is_dir() or path.name == "config.json":
        folder = path if path.is_dir() else path.parent
        return read_hf_tokenizer(folder / "tokenizer.json")
    return read_hf_tokenizer(path)


def _read_template(path: Path) -> str:
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"Cannot read the chat template {path}: {error}.", remedy="Check '--chat-template'."
        ) from error
    check_template(source)
    return source
