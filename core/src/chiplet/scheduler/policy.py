"""Policies: in which order waiting requests are admitted."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from chiplet.scheduler.waiting import Waiting

Policy = Callable[[Sequence[Waiting]], list[Waiting]]
"""Puts waiting requests into the order of admission.

Their `num_cached_tokens` are up to date if the policy is in `POLICIES_THAT_MATCH`.
"""

MAX_OVERTAKEN = 128
"""A request that so many younger ones have overtaken is served before they are."""


def first_come(candidates: Sequence[Waiting]) -> list[Waiting]:
    """The order of arrival."""
    return sorted(candidates, key=lambda waiting: waiting.order)


def longest_prefix(candidates: Sequence[Waiting]) -> list[Waiting]:
    """Longest cached prefix first: it costs least, and its pages are still there.

    Retracted requests and those overtaken too often come before all others, oldest first.
    """
    return sorted(candidates, key=_rank)


def _rank(waiting: Waiting) -> tuple[int, int]:
    if waiting.is_retracted or waiting.num_overtaken >= MAX_OVERTAKEN:
        return (-sys.maxsize, waiting.order)
    return (-waiting.num_cached_tokens, waiting.order)


POLICIES: dict[str, Policy] = {"fcfs": first_come, "lpm": longest_prefix}
"""By the values of `ScheduleOptions.schedule_policy`."""

POLICIES_THAT_MATCH = frozenset({longest_prefix})
