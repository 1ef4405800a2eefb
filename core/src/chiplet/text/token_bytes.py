"""The bytes that a token stands for; a text is those of its tokens put together."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer as Backend

from chiplet.errors import ModelError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True)
class Spelling:
    """How a vocabulary spells bytes.

    Attributes:
        to_bytes: the bytes of a token, from its entry in the vocabulary.
        strips_leading_space: a text loses one space at its beginning, which encoding added.
    """

    to_bytes: Callable[[str], bytes]
    strips_leading_space: bool


def find_spelling(backend: Backend) -> Spelling:
    """How the vocabulary of a backend spells bytes, seen from its decoder.

    Raises:
        ModelError: neither as byte-level BPE nor as sentencepiece.
    """
    # The decoder's state is its JSON, as in tokenizer.json.
    state = json.loads(backend.decoder.__getstate__()) if backend.decoder else {}
    steps = {step["type"]: step for step in _steps(state)}
    if "ByteLevel" in steps:
        return Spelling(_byte_level, strips_leading_space=False)
    if "ByteFallback" in steps or "Metaspace" in steps:
        metaspace = steps.get("Metaspace", {"prepend_scheme": "never"})
        strips = "Strip" in steps or metaspace.get("prepend_scheme") != "never"
        return Spelling(_sentencepiece, strips_leading_space=strips)
    raise ModelError(
        f"The tokenizer's decoder ({', '.join(steps) or 'none'}) is not supported; supported: "
        "ByteLevel, ByteFallback, Metaspace.",
        remedy="Name another tokenizer with '--tokenizer-path'.",
    )


def _steps(state: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if state.get("type") == "Sequence":
        for each in state["decoders"]:
            yield from _steps(each)
    elif state:
        yield state


def _byte_characters() -> dict[str, int]:
    """The byte behind each character of a byte-level vocabulary.

    Printable characters of Latin-1 stand for themselves; the other bytes, in order, for the
    characters from U+0100 on.

    Source: the byte encoder of GPT-2.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    named = {chr(byte): byte for byte in printable}
    return named | {chr(0x100 + index): byte for index, byte in enumerate(others)}


_BYTES = _byte_characters()


def _byte_level(token: str) -> bytes:
    try:
        return bytes([_BYTES[character] for character in token])
    except KeyError:  # a token added as plain text
        return token.encode()


def _sentencepiece(token: str) -> bytes:
    match = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(match[1], 16)]) if match else token.replace("\u2581", " ").encode()
