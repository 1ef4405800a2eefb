"""Suspicion: what a restarted engine does without, when a crash did not name its culprit."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from chiplet.crash import InUse, place_of, shown_by

FORGOTTEN_S = 3600.0
"""A crash without a culprit counts as repeated if the one before was no longer ago."""

_FAMILIES = ("attention", "moe", "communication", "linear", "ops")
"""Those that compute more addresses from a step's data are suspected before those that do less."""


@dataclass(frozen=True, slots=True)
class Accusation:
    """Who is to be done without, and why; or why nobody is.

    Attributes:
        deny: as `--deny` takes them.
    """

    deny: tuple[str, ...]
    text: str


@dataclass(slots=True)
class Suspicion:
    """Remembers crashes that had no culprit; the supervisor holds one.

    Attributes:
        now_s: a clock, for tests.
    """

    now_s: Callable[[], float] = time.monotonic
    _in_use: Sequence[InUse] = ()
    _platform: str = ""
    _crashes_s: list[float] = field(default_factory=list[float])

    def know(self, in_use: Sequence[InUse], platform: str) -> None:
        """What the engine uses from now on and can do without.

        Args:
            in_use: implementations, neither core's own nor pinned.
            platform: distribution of the device's plugin.
        """
        self._in_use, self._platform = in_use, platform

    def accuse(self, stack: str) -> Accusation:
        """Judge a crash by what it left.

        Args:
            stack: as faulthandler wrote it; empty if there is none, as of a device's late fault.
        """
        shown = shown_by(stack, self._in_use)
        if shown:
            deny = self._deny(shown)
            return Accusation(deny, f"Its last stack shows {', '.join(deny)} at work.")
        now_s = self.now_s()
        if self._crashes_s and now_s - self._crashes_s[-1] > FORGOTTEN_S:
            self._crashes_s.clear()
        self._crashes_s.append(now_s)
        if not self._in_use:
            return Accusation(
                (), "All that was in use is core's own or pinned: nothing can be done without."
            )
        if len(self._crashes_s) == 1:
            return Accusation((), "Nothing shows who was at work; nobody is suspected for once.")
        suspect = min(self._in_use, key=self._innocence)
        deny = self._deny([each for each in self._in_use if _are_kin(each, suspect)])
        return Accusation(
            deny,
            f"Nothing shows who was at work in the last {len(self._crashes_s)} crashes; "
            f"{', '.join(deny)} is suspected, and may be innocent.",
        )

    def where(self, stack: str) -> str:
        """Where a process was that hung, a sentence for people; empty if its stack does not tell.

        Nobody is denied for it: an implementation that compiles looks the same.
        """
        place = place_of(stack)
        shown = ", ".join(each.denial for each in shown_by(stack, self._in_use))
        return f"It was at {place}{f', in {shown}' if shown else ''}." if place else ""

    def _deny(self, accused: Sequence[InUse]) -> tuple[str, ...]:
        """An engine that crashes again before it is ready has nobody of these in use."""
        deny = tuple(each.denial for each in accused)
        self._in_use = [each for each in self._in_use if each.denial not in deny]
        return deny

    def _innocence(self, each: InUse) -> tuple[bool, int]:
        """Third parties' come first: the device's own plugin was tested with it."""
        place = _FAMILIES.index(each.family) if each.family in _FAMILIES else len(_FAMILIES)
        return each.distribution == self._platform, place


def _are_kin(each: InUse, other: InUse) -> bool:
    """Of one family and plugin: to deny them one by one would take a crash each."""
    return (each.family, each.distribution) == (other.family, other.distribution)
