"""Report: figures for people as a table, for programs as JSON, never without their origin."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.table import Table

from chiplet.cli.bench.machine import Machine, describe_machine
from chiplet.cli.settings import command_option
from chiplet.errors import ConfigError

Figures = Mapping[str, float | int | str]
"""Figures of one contestant or phase, by name with unit, like 'ttft_ms'."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportOptions:
    """Report: where figures go."""

    json: str | None = command_option(
        None, "Also write figures, machine, commit and command to this file.", metavar="FILE"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a benchmark measured.

    Attributes:
        workload: what was run, like token counts.
        figures: by contestant or phase.
        ratios: how the first contestant compares with others; above 1 is better.
    """

    benchmark: str
    command_line: tuple[str, ...]
    workload: Figures
    figures: Mapping[str, Figures]
    ratios: Figures = field(default_factory=dict[str, float | int | str])
    machine: Machine = field(default_factory=describe_machine)


def publish(report: Report, options: ReportOptions) -> None:
    """Print a report, and write it to a file if that was asked for.

    Raises:
        ConfigError: the file cannot be written.
    """
    console = Console()
    console.print(_table(report))
    for name, ratio in report.ratios.items():
        console.print(f"{name}: {ratio}")
    machine = report.machine
    console.print(
        f"{machine.processor}, {machine.num_cores} cores; torch {machine.torch}; "
        f"commit {machine.commit or 'unknown'}; {machine.date}",
        style="dim",
        highlight=False,
    )
    if options.json is None:
        return
    try:
        Path(options.json).write_text(json.dumps(asdict(report), indent=2) + "\n", "utf-8")
    except OSError as error:
        raise ConfigError(
            f"--json {options.json} cannot be written: {error.strerror}.",
            remedy="Give a file in a folder that exists.",
        ) from None


def percentiles(name: str, seconds: Sequence[float]) -> dict[str, float]:
    """Mean, median, 90th and 99th percentile in milliseconds, as figures."""
    if not seconds:
        return {}
    values = sorted(seconds)
    figures = {f"{name}_mean_ms": fmean(values)}
    for percent in (50, 90, 99):
        # The smallest value that at least so many percent of all do not exceed.
        figures[f"{name}_p{percent}_ms"] = values[-(-percent * len(values) // 100) - 1]
    return {key: round(value * 1e3, 2) for key, value in figures.items()}


def _table(report: Report) -> Table:
    workload = ", ".join(f"{name} {value}" for name, value in report.workload.items())
    table = Table(title=f"chiplet bench {report.benchmark}", caption=workload)
    table.add_column("")
    for contestant in report.figures:
        table.add_column(contestant, justify="right")
    names = list(dict.fromkeys(name for each in report.figures.values() for name in each))
    for name in names:
        row = [str(each.get(name, "")) for each in report.figures.values()]
        table.add_row(name, *row)
    return table
