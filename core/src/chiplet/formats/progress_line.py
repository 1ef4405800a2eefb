"""One line on stderr that says how far a long transfer is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager

Report = Callable[[str, int, int], None]
"""Called with what is being done, bytes done and bytes in all."""


@contextmanager
def showing_progress(name: str, *, is_shown: bool) -> Generator[Report, None, None]:
    """A function that shows progress on stderr.

    A terminal sees one line that changes; a log gets one line for each thing being done.
    """
    is_terminal = sys.stderr.isatty()
    shown = ""

    def report(what: str, done_bytes: int, total_bytes: int) -> None:
        nonlocal shown
        line = f"{name}: {what}"
        if is_terminal:
            line += f" {done_bytes / 1e6:.0f} of {total_bytes / 1e6:.0f} MB"
        if is_shown and line != shown:
            # The terminal's line is cleared first: it may have been longer.
            begin, end = ("\r\x1b[K", "") if is_terminal else ("", "\n")
            print(begin + line, end=end, file=sys.stderr, flush=True)
            shown = line

    try:
        yield report
    finally:
        if shown and is_terminal:
            print(file=sys.stderr)
