"""Report: what a run of the kit found, for programs and as one page."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

import jinja2
import torch

from chiplet.api import INTERFACE_VERSIONS
from chiplet.testing.conformance.case import Outcome, Status
from chiplet.testing.conformance.speed import Timing
from chiplet.version import __version__

_MOST_FAILURES_SHOWN = 20
_MOST_SLOW_SHOWN = 10
_DTYPE_ORDER = ("", "float32", "bfloat16", "float16")
_NO_OPERATIONS = ("platform", "package")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """All outcomes of one provider, operation, feature and type.

    Attributes:
        refusals: the distinct reasons, and what was skipped and why.
    """

    counts: Mapping[Status, int]
    failures: tuple[str, ...]
    refusals: tuple[str, ...]

    @property
    def status(self) -> Status:
        """The worst that happened; refused or skipped only if nothing else did."""
        order = (Status.FAILED, Status.PASSED, Status.SKIPPED, Status.REFUSED)
        return next(each for each in order if self.counts.get(each))

    @property
    def total(self) -> int:
        """All cases."""
        return sum(self.counts.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a run found.

    Attributes:
        device: like 'cpu:0'.
        tier: 'quick' or 'full'.
        num_planned: cases that were to run.
        stopped: why fewer ran; empty if all did.
        timings: speed beside the reference; empty if it was not measured.
        lost: what an earlier snapshot has and this run has not.
    """

    device: str
    tier: str
    outcomes: Sequence[Outcome]
    num_planned: int
    seconds: float
    stopped: str = ""
    timings: Sequence[Timing] = ()
    lost: Sequence[str] = ()

    @property
    def counts(self) -> Mapping[str, int]:
        """Cases by how they ended."""
        found = Counter(each.status for each in self.outcomes)
        return {str(each): found[each] for each in Status}

    @property
    def failures(self) -> list[Outcome]:
        """Cases that failed."""
        return [each for each in self.outcomes if each.status is Status.FAILED]

    @property
    def is_green(self) -> bool:
        """Nothing failed, nothing was lost, and everything ran."""
        return not self.failures and not self.lost and not self.stopped

    @property
    def num_unrun(self) -> int:
        """Cases that were to run and did not."""
        return self.num_planned - len(self.outcomes)

    @property
    def slowest(self) -> list[Outcome]:
        """The cases that took longest, longest first."""
        ordered = sorted(self.outcomes, key=lambda each: each.seconds, reverse=True)
        return ordered[:_MOST_SLOW_SHOWN]

    def cells(self) -> dict[tuple[str, str, str, str], Cell]:
        """Outcomes by provider, operation, feature and type."""

        def place(each: Outcome) -> tuple[str, str, str, str]:
            return _provider(each), each.case.operation, each.case.feature, each.case.dtype

        ordered = sorted(self.outcomes, key=place)
        return {key: _cell(list(group)) for key, group in groupby(ordered, key=place)}

    def to_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return {
            "chiplet": __version__,
            "interfaces": {name: f"{a}.{b}" for name, (a, b) in INTERFACE_VERSIONS.items()},
            "torch": torch.__version__,
            "machine": platform.machine(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "device": self.device,
            "tier": self.tier,
            "seconds": round(self.seconds, 1),
            "is_green": self.is_green,
            "stopped": self.stopped,
            "num_planned": self.num_planned,
            "counts": dict(self.counts),
            "badge": badge(self),
            "lost": list(self.lost),
            "timings": [each.to_json() for each in self.timings],
            "cases": [_case_json(each) for each in self.outcomes],
        }

    def to_html(self) -> str:
        """One self-contained page."""
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("chiplet.testing.conformance", ""),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        return environment.get_template("report.html.jinja").render(
            report=self,
            facts=self.to_json(),
            overview=_overview(self.outcomes),
            shown_failures=self.failures[:_MOST_FAILURES_SHOWN],
            tables=list(_tables(self.cells())),
        )


def badge(report: Report) -> dict[str, object]:
    """A badge in the form that badge services take as an endpoint."""
    counts = report.counts
    message = f"{counts['passed']} passed"
    if not report.is_green:
        message = f"{counts['failed']} failed, {len(report.lost)} lost, {report.num_unrun} not run"
    color = "brightgreen" if report.is_green else "red"
    return {"schemaVersion": 1, "label": "conformance", "message": message, "color": color}


def _cell(outcomes: Sequence[Outcome]) -> Cell:
    by_status = {status: [each for each in outcomes if each.status is status] for status in Status}
    unserved = by_status[Status.REFUSED] + by_status[Status.SKIPPED]
    failed = by_status[Status.FAILED][:_MOST_FAILURES_SHOWN]
    return Cell(
        counts={status: len(each) for status, each in by_status.items()},
        failures=tuple(f"{each.case.name}: {each.detail}" for each in failed),
        refusals=tuple(dict.fromkeys(each.detail for each in unserved)),
    )


@dataclass(frozen=True, slots=True)
class _Overview:
    """Operations by providers."""

    providers: Sequence[str]
    rows: Sequence[tuple[str, Mapping[str, Cell]]]


def _overview(outcomes: Sequence[Outcome]) -> _Overview:
    rows: dict[str, dict[str, list[Outcome]]] = {}
    for each in outcomes:
        row = rows.setdefault(each.case.operation, {})
        row.setdefault(_provider(each), []).append(each)
    # Platforms and packages have a row each, and no operations.
    named = {
        name for operation in rows if operation not in _NO_OPERATIONS for name in rows[operation]
    }
    shown = [
        (operation, {name: _cell(each) for name, each in row.items()})
        for operation, row in sorted(rows.items())
        if operation not in _NO_OPERATIONS
    ]
    return _Overview(sorted(named), shown)


def _tables(
    cells: Mapping[tuple[str, str, str, str], Cell],
) -> Iterator[tuple[str, list[str], list[tuple[str, str, dict[str, Cell]]]]]:
    """By provider: its name, its types, and rows of operation, feature and cells by type."""
    for provider, keys in groupby(cells, key=lambda key: key[0]):
        mine = list(keys)
        dtypes = sorted({key[3] for key in mine}, key=_dtype_order)
        mine.sort(key=lambda key: (key[1], key[2] != "plain", key[2]))
        rows = [
            (operation, feature, {key[3]: cells[key] for key in group})
            for (operation, feature), group in groupby(mine, key=lambda key: key[1:3])
        ]
        yield provider, dtypes, rows


def _provider(outcome: Outcome) -> str:
    return f"{outcome.subject.distribution} {outcome.subject.name}"


def _dtype_order(dtype: str) -> tuple[int, str]:
    return (_DTYPE_ORDER.index(dtype) if dtype in _DTYPE_ORDER else len(_DTYPE_ORDER), dtype)


def _case_json(outcome: Outcome) -> dict[str, Any]:
    case, subject = outcome.case, outcome.subject
    return {
        "distribution": subject.distribution,
        "version": subject.version,
        "provider": subject.name,
        "family": case.family,
        "operation": case.operation,
        "dtype": case.dtype,
        "feature": case.feature,
        "name": case.name,
        "status": str(outcome.status),
        "detail": outcome.detail,
        "seconds": round(outcome.seconds, 4),
    }
