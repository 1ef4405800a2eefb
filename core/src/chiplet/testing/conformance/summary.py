"""Summary: what a run found, for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from chiplet.testing.conformance.case import Outcome, Status
from chiplet.testing.conformance.report import Report

_MOST_FAILURES_SHOWN = 15
_SLOW_S = 1.0
"""A case that takes longer is worth a line."""

_COLORS = {"passed": "green", "failed": "red", "refused": "dim", "skipped": "yellow"}


def show(report: Report) -> None:
    """Print a table of providers and operations, then what went wrong and what took long."""
    console = Console()
    console.print(_table(report))
    for each in report.timings:
        console.print(f"{each.provider}: {each.what}: {each.ratio:.2f} times the reference")
    for each in report.slowest:
        if each.seconds >= _SLOW_S:
            console.print(f"[yellow]slow[/] {each.seconds:.1f} s {escape(_name(each))}")
    for each in report.failures[:_MOST_FAILURES_SHOWN]:
        console.print(f"[red]failed[/] {escape(_name(each))}: {escape(each.detail)}")
    if len(report.failures) > _MOST_FAILURES_SHOWN:
        console.print(f"... and {len(report.failures) - _MOST_FAILURES_SHOWN} more; see --json")
    for each in report.lost:
        console.print(f"[red]lost[/] {escape(each)}")
    if report.stopped:
        console.print(f"[red]{escape(report.stopped)}[/]: {report.num_unrun} cases did not run")
    counts = ", ".join(f"{count} {status}" for status, count in report.counts.items())
    console.print(f"{counts} in {report.seconds:.0f} s", highlight=False)


def _table(report: Report) -> Table:
    title = f"Conformance on {report.device}, {report.tier} tier"
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    # Where the terminal is narrow, long names are folded; counts and headings stay whole.
    for heading in ("provider", "operation"):
        table.add_column(heading, overflow="fold")
    for heading in (*map(str, Status), "s"):
        table.add_column(heading, justify="right", no_wrap=True, min_width=len(heading))
    for key, counts, seconds in _rows(report):
        shown = [
            f"[{_COLORS[status]}]{count}[/]" if count else "" for status, count in counts.items()
        ]
        table.add_row(*map(escape, key), *shown, f"{seconds:.1f}")
    return table


def _rows(report: Report) -> Iterator[tuple[tuple[str, str], dict[Status, int], float]]:
    """Provider and operation; cases by how they ended; seconds."""
    rows: dict[tuple[str, str], dict[Status, int]] = {}
    seconds: dict[tuple[str, str], float] = {}
    for each in report.outcomes:
        key = (f"{each.subject.distribution} {each.subject.name}", each.case.operation)
        rows.setdefault(key, dict.fromkeys(Status, 0))[each.status] += 1
        seconds[key] = seconds.get(key, 0.0) + each.seconds
    for key in sorted(rows):
        yield key, rows[key], seconds[key]


def _name(outcome: Outcome) -> str:
    return f"{outcome.subject.name} {outcome.case.id}"
