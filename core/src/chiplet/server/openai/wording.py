"""Words and numbers that chat completions and completions have in common."""

from __future__ import annotations

from chiplet.request import FinishReason
from chiplet.server.openai.answers import FinishWord

LEAST_LOGPROB = -9999.0
"""Stands for the log-probability of the impossible; JSON has no infinity."""


def finish_word(reason: FinishReason | None) -> FinishWord:
    """Why an answer ended, in the API's words."""
    return "length" if reason is FinishReason.LENGTH else "stop"


def finite(logprob: float) -> float:
    """A log-probability that JSON can hold."""
    return max(logprob, LEAST_LOGPROB)
