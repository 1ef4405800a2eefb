"""What was measured, as ratios of medians and as lines for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from peers.rows import Costs, Row

OURS = "chiplet"


@dataclass(slots=True)
class Findings:
    """Figures of one row.

    Attributes:
        by_round: per round, figures by peer; a peer that failed is not there.
        failures: why a peer has no figures, or fewer.
        disturbances: share of the cores that others used, of each figure.
    """

    row: Row
    by_round: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    failures: dict[str, str] = field(default_factory=dict[str, str])
    disturbances: list[float] = field(default_factory=list[float])

    def figures(self, peer: str) -> list[float]:
        """A peer's figures over the rounds."""
        return [each[peer] for each in self.by_round if peer in each]

    def ratio(self, ours: str, other: str) -> float | None:
        """How many times better one peer was than another: median over rounds that have both."""
        ratios = [
            each[other] / each[ours] if self.row.lower_is_better else each[ours] / each[other]
            for each in self.by_round
            if ours in each and other in each
        ]
        return median(ratios) if ratios else None

    def as_dict(
        self, peers: Sequence[str], codings: Mapping[str, str], costs: Costs | None
    ) -> dict[str, Any]:
        """All of it, for JSON."""
        found: dict[str, Any] = {
            "row": self.row.name,
            "unit": self.row.unit,
            "disturbance": max(self.disturbances, default=0.0),
            "peers": {},
        }
        for peer in peers:
            figures = self.figures(peer)
            entry: dict[str, Any] = {"figures": figures}
            if figures:
                entry["median"] = median(figures)
                if self.row.limit is not None and costs is not None:
                    entry["limit"] = self.row.limit(costs, codings[peer])
                    entry["of_limit"] = entry["median"] / entry["limit"]
            if peer in self.failures:
                entry["failure"] = self.failures[peer]
            found["peers"][peer] = entry
        found["ratios"] = {
            f"{ours} / {other}": ratio
            for ours in peers
            if ours.startswith(OURS)
            for other in peers
            if not other.startswith(OURS) and (ratio := self.ratio(ours, other)) is not None
        }
        return found


def lines(found: Mapping[str, Any], row: Row) -> list[str]:
    """A row of `Findings.as_dict` for people."""
    better = "less is better" if row.lower_is_better else "more is better"
    noise = f"others used up to {found['disturbance']:.0%} of the cores"
    text = ["", f"{row.title} [{row.unit}, {better}; {noise}]"]
    for peer, entry in found["peers"].items():
        words = f"  {peer:15}"
        if "median" in entry:
            spread = f"{min(entry['figures']):.4g} to {max(entry['figures']):.4g}"
            words += f" {entry['median']:9.4g}  ({spread})"
            if "limit" in entry:
                words += f"  {entry['of_limit']:.0%} of {entry['limit']:.4g}"
        if "failure" in entry:
            words += f"  NOT MEASURED: {entry['failure']}"
        text.append(words)
    text.extend(f"  {name}: {ratio:.2f}" for name, ratio in found["ratios"].items())
    return text
