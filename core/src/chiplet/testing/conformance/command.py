"""`chiplet conformance`: holds every provider of a device against the reference."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from chiplet.cli.command import Command, Given
from chiplet.cli.settings import command_option
from chiplet.config import DeviceOptions
from chiplet.errors import ConfigError
from chiplet.plugins import discover
from chiplet.testing.conformance import snapshot
from chiplet.testing.conformance.case import Case, Subject
from chiplet.testing.conformance.report import Report
from chiplet.testing.conformance.running import Run, run_all
from chiplet.testing.conformance.sharing import Sharing, run_shared
from chiplet.testing.conformance.speed import measure
from chiplet.testing.conformance.suite import Choice, choose_pairs, find_subjects
from chiplet.testing.conformance.summary import show


@dataclass(frozen=True, slots=True, kw_only=True)
class ConformanceOptions:
    """Conformance: what is checked, and where the report goes."""

    provider: str | None = command_option(None, "Check only the providers of this name.")
    quick: bool = command_option(False, "Check a part that takes less than a minute.")
    only: str | None = command_option(
        None, "Check only cases with this in their names, like 'attention' or 'window 20'."
    )
    time_limit: float | None = command_option(
        None, "Stop after so many seconds, and report what ran until then.", minimum=1
    )
    jobs: int = command_option(
        1,
        "Share the cases out to so many processes, where compiling takes longer than running.",
        minimum=1,
        metavar="N",
    )
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
    """Run the kit; 1 if anything failed, was lost or did not run."""
    options = given.options("conformance", ConformanceOptions())
    device = given.options("device", DeviceOptions())
    plugins = discover(device)
    try:
        return _hold(find_subjects(device, options.provider, plugins), device, options)
    finally:
        plugins.shut_down()


def _hold(subjects: Sequence[Subject], device: DeviceOptions, options: ConformanceOptions) -> int:
    choice = Choice(provider=options.provider, quick=options.quick, only=options.only)
    done = _run(subjects, device, options, choice)
    outcomes = done.outcomes
    report = Report(
        device=next(each.engines.chosen.label for each in subjects if each.engines is not None),
        tier="quick" if options.quick else "full",
        outcomes=outcomes,
        num_planned=done.num_planned,
        stopped=done.stopped,
        seconds=done.seconds,
        timings=tuple(measure(subjects)) if options.speed and not done.stopped else (),
        lost=snapshot.lost(Path(options.snapshot), outcomes, provider=options.provider)
        if options.snapshot
        else (),
    )
    if options.json:
        _write("json", options.json, lambda: json.dumps(report.to_json(), indent=1) + "\n")
    if options.html:
        _write("html", options.html, report.to_html)
    if options.update_snapshot:
        _update_snapshot(options.update_snapshot, done)
    show(report)
    return int(not report.is_green)


def _run(
    subjects: Sequence[Subject], device: DeviceOptions, options: ConformanceOptions, choice: Choice
) -> Run:
    pairs = choose_pairs(subjects, choice)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("Conformance", total=len(pairs))
        if options.jobs > 1:
            sharing = Sharing(
                jobs=options.jobs, device=device, choice=choice, time_limit_s=options.time_limit
            )
            return run_shared(
                pairs, sharing, done=lambda count: progress.update(task, completed=count)
            )
        count = iter(range(len(pairs)))

        def starting(case: Case, subject: Subject) -> None:
            words = f"{subject.name} {case.operation} {case.dtype}"
            progress.update(task, description=words[:36].ljust(36), completed=next(count))

        done = run_all(pairs, time_limit_s=options.time_limit, starting=starting)
        progress.update(task, completed=len(done.outcomes))
    return done


def _update_snapshot(path: str, done: Run) -> None:
    if done.stopped:
        raise ConfigError(
            f"--update-snapshot {path}: not written, since the run was {done.stopped}.",
            remedy="Let the run end.",
        )
    snapshot.write(Path(path), done.outcomes)


def _write(flag: str, path: str, text: Callable[[], str]) -> None:
    try:
        Path(path).write_text(text(), "utf-8")
    except OSError as error:
        raise ConfigError(
            f"--{flag} {path} cannot be written: {error.strerror}.",
            remedy="Give a file in a folder that exists.",
        ) from None


COMMAND = Command(
    name="conformance",
    summary="Hold the providers of a device against the reference; exit code 1 on a failure.",
    run=run,
    groups={"conformance": ConformanceOptions, "device": DeviceOptions},
)
