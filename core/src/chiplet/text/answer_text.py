"""AnswerText: the text of one answer as its tokens come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from chiplet.text.detokenizer import IncrementalDetokenizer
from chiplet.text.stop_strings import StopStrings
from chiplet.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class TextOptions:
    """How tokens become the text of an answer.

    Attributes:
        stop: the answer ends before the first of these strings.
        skip_special_tokens: leave special tokens out of the text.
        include_stop_in_output: keep the stop string, or the text of the end token.
        keeps_leading_space: the text continues its prompt directly, so a space at its beginning
            counts (completions yes, chat no). Only sentencepiece vocabularies know a difference.
    """

    stop: tuple[str, ...] = ()
    skip_special_tokens: bool = True
    include_stop_in_output: bool = False
    keeps_leading_space: bool = False


@dataclass(frozen=True, slots=True)
class TextDelta:
    """What some tokens added to the text.

    Attributes:
        text: new text, never to be taken back.
        is_stopped: a stop string was found; the answer is complete.
        stop: that string.
    """

    text: str
    is_stopped: bool = False
    stop: str | None = None


class AnswerText:
    """The text of one answer as its tokens come."""

    def __init__(self, tokenizer: Tokenizer, options: TextOptions) -> None:
        self._shows_end_token = options.include_stop_in_output
        self._detokenizer = IncrementalDetokenizer(
            tokenizer,
            skip_special_tokens=options.skip_special_tokens,
            keeps_leading_space=options.keeps_leading_space,
        )
        self._stops = StopStrings(options.stop, is_included=options.include_stop_in_output)
        self._is_stopped = False

    def push(
        self, token_ids: Sequence[int], *, is_last: bool = False, stop_token_id: int | None = None
    ) -> TextDelta:
        """What these tokens add to the text; nothing after a stop string was found.

        Args:
            token_ids: the next tokens.
            is_last: nothing follows: text that was held back is given.
            stop_token_id: the end token that finished the answer, as in `RequestOutput`. If it is
                the last of `token_ids` it is not shown, unless `include_stop_in_output`.
        """
        if self._is_stopped:
            return TextDelta("")
        if stop_token_id is not None and not self._shows_end_token:
            token_ids = _without_end(token_ids, stop_token_id)
        text = self._detokenizer.push(token_ids, is_last=is_last)
        result = self._stops.push(text, is_last=is_last)
        self._is_stopped = result.stop is not None
        return TextDelta(result.text, self._is_stopped, result.stop)


def _without_end(token_ids: Sequence[int], stop_token_id: int) -> Sequence[int]:
    is_there = bool(token_ids) and token_ids[-1] == stop_token_id
    return token_ids[:-1] if is_there else token_ids
