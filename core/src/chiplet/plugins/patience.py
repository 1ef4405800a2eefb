"""Patience: says what a start waits for, when a plugin's code does not return."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager
from threading import Timer

logger = logging.getLogger(__name__)

PATIENCE_S = 10.0


@contextmanager
def patience(what: str) -> Generator[None]:
    """Name in the log what has not returned for a while; nothing is cut short.

    A call that holds Python's interpreter cannot be named in this way.
    """
    timer = Timer(PATIENCE_S, _say, (what,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _say(what: str) -> None:
    logger.warning("Still waiting for %s, after %g s.", what, PATIENCE_S)
