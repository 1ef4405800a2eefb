"""Foresight: comparisons with the reference side by side, before their outcome is asked for.

A model asks for one implementation after another while it is made, and each would wait until the
one before has been compiled and compared. Made once without comparisons, it shows what it will ask
for.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from chiplet.api import Platform, ThreadedPlatform
from chiplet.plugins.candidates import Request
from chiplet.plugins.comparison import Built, Compared, Comparer
from chiplet.plugins.isolation import FAULTS
from chiplet.plugins.selection import Selector

_FAMILIES = ("attention", "linear", "moe")
"""Whose requests share kernels; of operations each has its own."""


def foresee(selector: Selector, platform: Platform, make: Callable[[Selector], object]) -> None:
    """Compare what a selector will be asked for side by side, where the platform allows that.

    Args:
        selector: finds the outcomes ready when it is asked.
        platform: where all of it runs.
        make: asks the selector that it is given for all that this one will be asked for; what it
            makes is dropped.
    """
    if selector.comparer.judge is None or not isinstance(platform, ThreadedPlatform):
        return
    scout = selector.scout
    make(scout)
    # What shares kernels is compared one after another, so that none is compiled twice.
    groups: dict[tuple[str, str], list[Built]] = {}
    for each in scout.bound:
        operation, name = each.operation, each.seat.candidate.name
        family = operation.partition("/")[0]
        key = (family if family in _FAMILIES else operation, name)
        built = Built(each.request, each.seat.candidate, each.seat.verdict, each.impl)
        groups.setdefault(key, []).append(built)

    def compare(group: list[Built]) -> dict[tuple[Request, str], Compared]:
        platform.activate()
        return _compared(selector.comparer, group)

    # The largest groups first: they take longest.
    ordered = sorted(groups.values(), key=len, reverse=True)
    with ThreadPoolExecutor(platform.num_check_threads, "self-check") as pool:
        for outcomes in pool.map(compare, ordered):
            selector.foreseen.update(outcomes)


def _compared(comparer: Comparer, group: list[Built]) -> dict[tuple[Request, str], Compared]:
    """Outcomes by request and provider; what raises is left out, and will raise again."""
    outcomes: dict[tuple[Request, str], Compared] = {}
    for built in group:
        try:
            outcomes[built.request, built.candidate.name] = comparer.compare(built)
        except FAULTS:
            continue
    return outcomes
