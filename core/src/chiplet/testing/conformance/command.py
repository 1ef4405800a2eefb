"""`chiplet conformance`: holds every provider of a device against the reference."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from chiplet.cli.command import Command, Given
from chiplet.cli.settings import command_option
from chiplet.config import DeviceOptions
from chiplet.errors import ConfigError
from chiplet.testing.conformance import snapshot
from chiplet.testing.conformance.case import Outcome, Status, Subject, run_case
from chiplet.testing.conformance.report import Report
from chiplet.testing.conformance.speed import measure
from chiplet.testing.conformance.suite import all_cases, find_subjects, pair

_MOST_FAILURES_SHOWN = 15
_COLORS = {"passed": "green", "failed": "red", "refused": "dim", "skipped": "yellow"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConformanceOptions:
    """Conformance: what is checked, and where the report goes."""

    provider: str | None = command_option(None, "Check only the providers of this name.")
    quick: bool = command_option(False, "Check a part that takes less than a minute.")
    speed: bool = command_option(
        False, "Also measure speed beside the reference; a first orientation, no benchmark."
    )
    json: str | None = command_option(None, "Write every case to this file.", metavar="FILE")
    html: str | None = command_option(None, "Write one page to this file.", metavar="FILE")
    snapshot: str | None = command_option(
        None, "Fail if less is supported than this file says.", metavar="FILE"
    )
    update_snapshot: str | None = command_option(
        None, "Write what is supported to this file.", metavar="FILE"
    )


def run(given: Given) -> int:
    """Run the kit; 1 if anything failed or was lost."""
    options = given.options("conformance", ConformanceOptions())
    device = given.options("device", DeviceOptions())
    subjects = find_subjects(device, options.provider)
    start = time.perf_counter()
    outcomes = _outcomes(subjects, quick=options.quick)
    report = Report(
        device=next((each.name for each in subjects if each.family == "platform"), "any"),
        tier="quick" if options.quick else "full",
        outcomes=outcomes,
        seconds=time.perf_counter() - start,
        timings=tuple(measure(subjects)) if options.speed else (),
        lost=snapshot.lost(Path(options.snapshot), outcomes, provider=options.provider)
        if options.snapshot
        else (),
    )
    if options.json:
        _write("json", options.json, lambda: json.dumps(report.to_json(), indent=1) + "\n")
    if options.html:
        _write("html", options.html, report.to_html)
    if options.update_snapshot:
        snapshot.write(Path(options.update_snapshot), outcomes)
    _show(report)
    return int(not report.is_green)


def _outcomes(subjects: Sequence[Subject], *, quick: bool) -> list[Outcome]:
    pairs = list(pair(all_cases(quick=quick), subjects))
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    outcomes: list[Outcome] = []
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("Conformance", total=len(pairs))
        for case, subject in pairs:
            progress.update(task, description=f"{case.operation} {case.dtype}"[:28].ljust(28))
            outcomes.append(run_case(case, subject))
            progress.advance(task)
    return outcomes


def _write(flag: str, path: str, text: Callable[[], str]) -> None:
    try:
        Path(path).write_text(text(), "utf-8")
    except OSError as error:
        raise ConfigError(
            f"--{flag} {path} cannot be written: {error.strerror}.",
            remedy="Give a file in a folder that exists.",
        ) from None


def _show(report: Report) -> None:
    console = Console()
    table = Table(title=f"Conformance on {report.device}, {report.tier} tier")
    for heading in ("plugin", "provider", "operation"):
        table.add_column(heading)
    for status in Status:
        table.add_column(str(status), justify="right")
    rows: dict[tuple[str, str, str], dict[Status, int]] = {}
    for each in report.outcomes:
        key = (each.subject.distribution, each.subject.name, each.case.operation)
        counts = rows.setdefault(key, dict.fromkeys(Status, 0))
        counts[each.status] += 1
    for key, counts in sorted(rows.items()):
        shown = [
            f"[{_COLORS[status]}]{count}[/]" if count else "" for status, count in counts.items()
        ]
        table.add_row(*map(escape, key), *shown)
    console.print(table)
    for each in report.timings:
        console.print(f"{each.provider}: {each.what}: {each.ratio:.2f} times the reference")
    for each in report.failures[:_MOST_FAILURES_SHOWN]:
        console.print(
            f"[red]failed[/] {escape(each.subject.name)} {escape(each.case.id)}: "
            f"{escape(each.detail)}"
        )
    if len(report.failures) > _MOST_FAILURES_SHOWN:
        console.print(f"... and {len(report.failures) - _MOST_FAILURES_SHOWN} more; see --json")
    for each in report.lost:
        console.print(f"[red]lost[/] {escape(each)}")
    counts = ", ".join(f"{count} {status}" for status, count in report.counts.items())
    console.print(f"{counts} in {report.seconds:.0f} s", highlight=False)


COMMAND = Command(
    name="conformance",
    summary="Hold the providers of a device against the reference; exit code 1 on a failure.",
    run=run,
    groups={"conformance": ConformanceOptions, "device": DeviceOptions},
)
