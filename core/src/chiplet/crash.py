"""Crash: which implementations a process had in use, and which of them its last stack shows.

A process that dies by a signal raises nothing. What it leaves is the stack that Python's
faulthandler writes on the way, and who was in use is known from its start.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Span = tuple[str, int, int]
"""Lines `first` to `last` of a file, both included."""

_FRAME = re.compile(r'^  File "(?P<file>.*)", line (?P<line>\d+) in ', re.MULTILINE)
_CRASHED = "Current thread"
_THREAD = re.compile(rf"^({_CRASHED}|Thread) 0x.*:$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class InUse:
    """An implementation in use that may be done without: neither core's own nor pinned.

    Attributes:
        denial: what does without it, as `--deny` takes it.
        family: 'attention', 'linear' and so on.
        distribution: the plugin that it is from.
        spans: its source code; empty where there is none in Python.
    """

    denial: str
    family: str
    distribution: str
    spans: tuple[Span, ...] = ()


def shown_by(stack: str, in_use: Sequence[InUse]) -> tuple[InUse, ...]:
    """The implementations that the innermost frame of a stack belongs to that is anybody's.

    One source may serve several operations, which are then shown together.

    Args:
        stack: as faulthandler writes it, innermost frame first; may be cut off or empty.
        in_use: at the time.
    """
    for file, line in _frames(stack):
        shown = tuple(
            each
            for each in in_use
            if any(
                file == _as_written(name) and first <= line <= last
                for name, first, last in each.spans
            )
        )
        if shown:
            return shown
    return ()


def place_of(stack: str) -> str:
    """Where the innermost frame of a stack is, for people; empty if it has none."""
    return next((f"{file}, line {line}" for file, line in _frames(stack)), "")


def _frames(stack: str) -> Iterator[tuple[str, int]]:
    """File and line of each frame of the thread that crashed; of all, if none is marked so."""
    # What stands before the first heading, then headings and what follows them by turns.
    _, *parts = _THREAD.split(stack)
    threads = [*zip(parts[::2], parts[1::2], strict=True)]
    # A crash in a thread of an extension marks none as current.
    crashed = [text for heading, text in threads if heading == _CRASHED]
    for text in crashed or [text for _, text in threads]:
        for frame in _FRAME.finditer(text):
            yield frame["file"], int(frame["line"])


def _as_written(name: str) -> str:
    """A file's name as faulthandler writes it."""
    return name.encode("ascii", "backslashreplace").decode()
