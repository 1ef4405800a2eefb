"""StopStrings: finds the strings that end an answer in a text that comes in pieces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StopResult:
    """What a piece of text brought.

    Attributes:
        text: may be shown: no stop string begins in it.
        stop: the stop string that was found; it is in `text` only if that was asked for.
    """

    text: str
    stop: str | None = None


class StopStrings:
    """Watches a text for stop strings and holds back what could be the beginning of one.

    The one that ends first is found, of several that end together the longest: the outcome does
    not depend on how the text was cut into pieces.
    """

    def __init__(self, stops: Sequence[str], *, is_included: bool = False) -> None:
        assert all(stops), "SamplingParams refuses empty stop strings"
        self._stops = tuple(stops)
        self._is_included = is_included
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""

    def push(self, text: str, *, is_last: bool = False) -> StopResult:
        """What may be shown after another piece of text.

        Args:
            text: the next piece.
            is_last: nothing follows, so nothing is held back.
        """
        if not self._stops:
            return StopResult(text)
        text = self._held + text
        found = [
            (text.index(stop) + len(stop), -len(stop), stop) for stop in self._stops if stop in text
        ]
        if found:
            end, _, stop = min(found)
            self._held = ""
            return StopResult(text[: end if self._is_included else end - len(stop)], stop)
        cut = len(text) if is_last else self._first_candidate(text)
        self._held = text[cut:]
        return StopResult(text[:cut])

    def _first_candidate(self, text: str) -> int:
        """Where the longest end of the text begins that a stop string begins with."""
        for begin in range(max(0, len(text) - self._longest + 1), len(text)):
            tail = text[begin:]
            if any(stop.startswith(tail) for stop in self._stops):
                return begin
        return len(text)
