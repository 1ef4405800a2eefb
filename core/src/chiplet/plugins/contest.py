"""Contest: one request, and everybody's verdict on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from chiplet.api import No, Part, Verdict, Yes
from chiplet.errors import PluginError
from chiplet.plugins.candidates import Candidate, Request, operation_of, summary_of
from chiplet.plugins.plan import Rejection, Server

_FAILURES = ("raised", "malformed", "build", "self-check")
"""Codes of refusals that are no choice of the provider's; core gives them."""


@dataclass(frozen=True, slots=True)
class Seat:
    """A candidate that serves calls of some sizes, or a part of the steps.

    Attributes:
        max_tokens: calls of at most so many tokens that no seat before it serves; None for all
            that are left.
    """

    candidate: Candidate
    verdict: Yes
    max_tokens: int | None = None

    @property
    def part(self) -> Part:
        """Part of the steps that it serves; all that is left for the last seat of a table."""
        return self.verdict.part

    def server(self) -> Server:
        """As a plan shows it."""
        return Server(
            provider=self.candidate.name,
            distribution=self.candidate.plugin.distribution,
            version=self.candidate.plugin.version,
            score=self.verdict.score,
            note=self.verdict.note,
            max_tokens=self.max_tokens,
            numerics=self.verdict.numerics,
            part=self.part,
        )


@dataclass(slots=True)
class Contest:
    """One request with its candidates; a candidate that fails is refused and the rest go on.

    Attributes:
        pin: the only candidate that the user wants, if there is one.
        verdicts: one per candidate, in the order in which they were found.
        impls: what has been built, by the candidate's name.
        checks: outcome of each built one's comparison with the reference.
        timings: microseconds of those that were measured, by number of tokens.
    """

    request: Request
    pin: str | None
    verdicts: dict[str, tuple[Candidate, Verdict]]
    impls: dict[str, Any] = field(default_factory=dict[str, Any])
    checks: dict[str, str] = field(default_factory=dict[str, str])
    timings: dict[str, dict[int, float]] = field(default_factory=dict[str, dict[int, float]])

    @property
    def operation(self) -> str:
        """The operation as `--use` names it."""
        return operation_of(self.request)

    def willing(self) -> list[tuple[Candidate, Yes]]:
        """Candidates that may serve, best first; only the pinned one if there is a pin."""
        return [each for each in self._offers() if self.pin in (None, each[0].name)]

    def _offers(self) -> list[tuple[Candidate, Yes]]:
        """Candidates that may serve, whatever is pinned, best first."""
        found = [
            (candidate, verdict)
            for candidate, verdict in self.verdicts.values()
            if isinstance(verdict, Yes)
        ]
        # Sorting is stable: of equal scores, the one found first stays first.
        return sorted(found, key=lambda pair: -pair[1].score)

    def refuse(self, name: str, verdict: No) -> None:
        """Take a candidate out."""
        self.verdicts[name] = (self.verdicts[name][0], verdict)

    def seats_by_score(self) -> tuple[Seat, ...]:
        """A table in which every size of call goes to the best score; empty if nobody serves.

        A pinned candidate serves all sizes: the user's word stands above its own. If it serves a
        part of the steps, the best of the others serves the rest.
        """
        willing = self.willing()
        if self.pin is not None:
            whole = _of_all_parts(willing) or _of_all_parts(self._offers())
            return self.with_part(tuple(Seat(*each) for each in whole[:1])) if willing else ()
        willing = _of_all_parts(willing)
        bounds = sorted({each.max_tokens for _, each in willing if each.max_tokens is not None})
        seats: list[Seat] = []
        for bound in (*bounds, None):
            best = next((each for each in willing if _reaches(each[1], bound)), None)
            if best is not None:
                seats.append(Seat(*best, bound))
        if not seats or seats[-1].max_tokens is not None:
            return ()
        return self.with_part(merged(seats))

    def with_part(self, seats: tuple[Seat, ...]) -> tuple[Seat, ...]:
        """The table with the best score before it, if that speaks for a part of the steps only."""
        best = self.willing()[:1]
        if not seats or not best or best[0][1].part is Part.ALL:
            return seats
        return (Seat(*best[0]), *seats)

    def rejections(self, seats: Sequence[Seat]) -> tuple[Rejection, ...]:
        """Why each of the others does not serve."""
        serving = {each.candidate.name for each in seats}
        return tuple(
            self._rejection(candidate, verdict, seats[-1])
            for candidate, verdict in self.verdicts.values()
            if candidate.name not in serving
        )

    def _rejection(self, loser: Candidate, verdict: Verdict, winner: Seat) -> Rejection:
        if isinstance(verdict, No):
            has_failed = any(each.code in _FAILURES for each in verdict.reasons)
            return Rejection(loser.name, _texts(verdict), has_failed=has_failed)
        best = winner.verdict.score
        sign = "<" if verdict.score < best else "=" if verdict.score == best else ">"
        reason = f"score {verdict.score} {sign} {best}"
        if self.pin is not None:
            reason = f"score {verdict.score}, another is pinned"
        elif loser.name in self.timings and winner.candidate.name in self.timings:
            reason += ", and measured slower"
        elif verdict.score == best:
            reason += ", found later"
        return Rejection(loser.name, (reason,), f"--use {self.operation}={loser.name}")

    def refusal(self) -> PluginError:
        """The error if nobody is left."""
        willing = ", ".join(
            each.name for each, verdict in self.verdicts.values() if isinstance(verdict, Yes)
        )
        refused = [
            f"{each.name}: {'; '.join(_texts(verdict))}"
            for each, verdict in self.verdicts.values()
            if isinstance(verdict, No) and self.pin in (None, each.name)
        ]
        nobody = f"Nobody serves {self.operation}"
        what = f"Pin '{self.operation}={self.pin}' cannot be kept" if self.pin else nobody
        return PluginError(
            f"{what} ({summary_of(self.request)}). {' | '.join(refused)}.",
            remedy=f"Providers that serve it: {willing or 'none'}.",
        )


def merged(seats: Sequence[Seat]) -> tuple[Seat, ...]:
    """The same table with neighbours of one candidate made one."""
    kept: list[Seat] = []
    for each in seats:
        if kept and kept[-1].candidate is each.candidate:
            kept.pop()
        kept.append(each)
    return tuple(kept)


def _reaches(verdict: Yes, bound: int | None) -> bool:
    """Whether a verdict speaks for calls of so many tokens; None for any number."""
    if verdict.max_tokens is None:
        return True
    return bound is not None and bound <= verdict.max_tokens


def _of_all_parts(offers: Sequence[tuple[Candidate, Yes]]) -> list[tuple[Candidate, Yes]]:
    return [each for each in offers if each[1].part is Part.ALL]


def _texts(verdict: No) -> tuple[str, ...]:
    return tuple(
        f"{reason.text} ({reason.hint})" if reason.hint else reason.text
        for reason in verdict.reasons
    )
