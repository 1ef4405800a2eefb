"""Tuner: of the best candidates for a request, the one that measures fastest."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import exp, log
from typing import Any, Protocol

from chiplet.api import AttentionRequest, LinearRequest, Part, Yes
from chiplet.plugins.autotune.cache import MeasurementCache, Timings
from chiplet.plugins.candidates import Candidate
from chiplet.plugins.contest import Contest, Seat, merged
from chiplet.plugins.request_key import request_key

_log = logging.getLogger(__name__)

MIN_GAIN = 0.95
"""Another than the best score is taken only where it needs at most this share of its time: a
choice should not follow the noise."""

MAX_ESTIMATE_RATIO = 3.0
"""Who expects to need so many times what another expects is not measured."""

TunedRequest = AttentionRequest | LinearRequest
"""Requests that state the sizes of the work; those of other families do not."""


class Stopwatch(Protocol):
    """Measures implementations; see `chiplet.plugins.autotune.measure`."""

    def measure(self, request: TunedRequest, impl: Any, num_tokens: int) -> float:
        """Microseconds of one call on so many tokens.

        Raises:
            Exception: whatever the implementation raises.
        """
        ...


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured.

    Attributes:
        num_rivals: candidates of each request, best scores first.
        sizes: numbers of tokens.
        budget_s: time for all measurements of a start; what comes later goes by score.
    """

    num_rivals: int
    sizes: tuple[int, ...]
    budget_s: float


EFFORTS = {
    "fast": Effort(num_rivals=2, sizes=(1, 64), budget_s=3.0),
    "on": Effort(num_rivals=4, sizes=(1, 8, 64, 512), budget_s=120.0),
}
"""By the values of `--autotune` other than 'off'."""


@dataclass(slots=True)
class Tuner:
    """Chooses by measurement; see `chiplet.plugins.selection.Tuner`.

    Attributes:
        notify: told what is measured next.
    """

    stopwatch: Stopwatch
    cache: MeasurementCache
    effort: Effort
    notify: Callable[[str], None] = lambda text: None
    _spent_s: float = 0.0
    _num_measured: int = 0
    _is_finished: bool = False
    _failed: set[str] = field(default_factory=set[str])

    def seats(
        self, contest: Contest, is_sound: Callable[[Candidate], bool]
    ) -> tuple[Seat, ...] | None:
        """The table of the fastest; None where scores decide.

        Args:
            contest: whose timings are noted in it.
            is_sound: builds a candidate and compares it with the reference.
        """
        request = contest.request
        if not isinstance(request, TunedRequest):
            return None
        rivals = self._rivals(contest)
        if len(rivals) < 2:
            return None
        fresh: list[Candidate] = []
        for candidate, _ in rivals:
            timings, is_fresh = self._timings(contest, request, candidate, is_sound)
            if timings is not None:
                contest.timings[candidate.name] = dict(timings)
            if is_fresh:
                fresh.append(candidate)
        for candidate in fresh:
            self._measure_again(contest, request, candidate)
        timed = [each for each in rivals if each[0].name in contest.timings]
        if len(timed) < 2:
            contest.timings.clear()
            return None
        return self._fastest(contest, timed)

    def finish(self) -> None:
        """Keep what was measured; from now on only what is known already decides."""
        self._is_finished = True
        self.cache.save()
        if self._num_measured:
            _log.info("Measured %d implementations in %.1f s.", self._num_measured, self._spent_s)

    def _rivals(self, contest: Contest) -> list[tuple[Candidate, Yes]]:
        """The best by score, without core's reference, without who serves a part of the steps only
        and without who expects to be slow.

        All compute what the best score does: speed is no reason to round otherwise.
        """
        willing = [
            (candidate, verdict)
            for candidate, verdict in contest.willing()
            if not candidate.plugin.is_core and verdict.part is Part.ALL
        ]
        willing = [each for each in willing if each[1].numerics is willing[0][1].numerics]
        estimates = [
            _mean(verdict.estimate_us.values()) for _, verdict in willing if verdict.estimate_us
        ]
        limit = MAX_ESTIMATE_RATIO * min(estimates, default=0.0)
        hopeful = [
            (candidate, verdict)
            for candidate, verdict in willing
            if not verdict.estimate_us or _mean(verdict.estimate_us.values()) <= limit
        ]
        return hopeful[: self.effort.num_rivals]

    def _timings(
        self,
        contest: Contest,
        request: TunedRequest,
        candidate: Candidate,
        is_sound: Callable[[Candidate], bool],
    ) -> tuple[Timings | None, bool]:
        """Of every size, None if they are not known and cannot be measured; whether just now."""
        key = _key(candidate, request)
        known = self.cache.find(key)
        if known is not None and set(self.effort.sizes) <= set(known):
            return {size: known[size] for size in self.effort.sizes}, False
        is_late = self._is_finished or self._spent_s >= self.effort.budget_s
        if is_late or key in self._failed or not is_sound(candidate):
            return None, False
        self.notify(f"Measuring {contest.operation}: {candidate.name}")
        started_s = time.monotonic()
        try:
            impl = contest.impls[candidate.name]
            timings = {
                size: self.stopwatch.measure(request, impl, size) for size in self.effort.sizes
            }
        except Exception as error:
            # It passed the self-check; that it cannot do this is no reason against it.
            _log.warning(
                "%s: provider %s cannot be measured: %s", contest.operation, candidate.name, error
            )
            self._failed.add(key)
            return None, False
        finally:
            self._spent_s += time.monotonic() - started_s
        self._num_measured += 1
        self.cache.put(key, timings)
        return timings, True

    def _measure_again(self, contest: Contest, request: TunedRequest, candidate: Candidate) -> None:
        """Once more after all rivals were measured, and keep the better times.

        Other work on the machine comes and goes: what was slow only while it was there should
        not lose for it.
        """
        started_s = time.monotonic()
        try:
            impl, timings = contest.impls[candidate.name], contest.timings[candidate.name]
            for size, before in timings.items():
                timings[size] = min(before, self.stopwatch.measure(request, impl, size))
        except Exception as error:
            _log.warning(
                "%s: provider %s was measured once, and not again: %s",
                contest.operation,
                candidate.name,
                error,
            )
        finally:
            self._spent_s += time.monotonic() - started_s
        self.cache.put(_key(candidate, request), contest.timings[candidate.name])

    def _fastest(
        self, contest: Contest, timed: Sequence[tuple[Candidate, Yes]]
    ) -> tuple[Seat, ...] | None:
        """A table with a row up to each size at which somebody's verdict ends."""
        bounds = sorted({each.max_tokens for _, each in timed if each.max_tokens is not None})
        seats: list[Seat] = []
        first = 0
        for bound in (*bounds, None):
            able = [
                each
                for each in timed
                if each[1].max_tokens is None or (bound is not None and bound <= each[1].max_tokens)
            ]
            if not able:
                return None
            sizes = [
                size
                for size in self.effort.sizes
                if first < size and (bound is None or size <= bound)
            ] or list(self.effort.sizes)
            means = [_mean(contest.timings[each.name][size] for size in sizes) for each, _ in able]
            best = means.index(min(means))
            winner = able[best] if means[best] <= MIN_GAIN * means[0] else able[0]
            seats.append(Seat(*winner, bound))
            first = bound or first
        return merged(seats)


def _key(candidate: Candidate, request: TunedRequest) -> str:
    """Under which a candidate's times are kept."""
    plugin = candidate.plugin
    return f"{candidate.name} {plugin.distribution} {plugin.version} {request_key(request)}"


def _mean(values: Any) -> float:
    """The geometric mean: half the time counts alike for a small call and a large one."""
    logs = [log(max(each, 1e-9)) for each in values]
    return exp(sum(logs) / len(logs))
