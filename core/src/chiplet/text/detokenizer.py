"""IncrementalDetokenizer: token ids to text as they come."""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from chiplet.text.tokenizer import Tokenizer

_NEW_DECODER = codecs.getincrementaldecoder("utf-8")


class IncrementalDetokenizer:
    """Turns token ids into text as they come.

    What it gives is never taken back and never ends within a character; put together it equals
    `Tokenizer.decode` of all ids (with `keeps_leading_space`, but for that space). Each token
    costs the same, however long the text is.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        skip_special_tokens: bool = True,
        keeps_leading_space: bool = False,
    ) -> None:
        self._token_bytes = tokenizer.token_bytes
        self._skipped = tokenizer.special_token_ids if skip_special_tokens else frozenset[int]()
        self._is_space_due = tokenizer.strips_leading_space and not keeps_leading_space
        self._decoder = _NEW_DECODER("replace")

    def push(self, token_ids: Iterable[int], *, is_last: bool = False) -> str:
        """The text that these tokens complete.

        Args:
            token_ids: the next tokens.
            is_last: nothing follows: half a character becomes U+FFFD.
        """
        skipped = self._skipped
        raw = b"".join([self._token_bytes(each) for each in token_ids if each not in skipped])
        if raw and self._is_space_due:
            raw = raw.removeprefix(b" ")
            self._is_space_due = False
        return self._decoder.decode(raw, is_last)
