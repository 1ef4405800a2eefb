"""TokenizerParts: what a checkpoint says of its tokenizer, whichever format says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tokenizers import Tokenizer as Backend


@dataclass(frozen=True, slots=True)
class TokenizerParts:
    """What a tokenizer is made of.

    Attributes:
        backend: splits text into tokens and adds the special ones that the checkpoint wants.
        special_tokens: text by role, like 'bos_token'; chat templates see them by these names.
        chat_template: Jinja source, if the checkpoint has one.
    """

    backend: Backend
    special_tokens: Mapping[str, str]
    chat_template: str | None
