"""Sharing: the cases of a run dealt out to several processes on one device.

What most cases cost on a device is compiling, which takes a core each. The processes find the
subjects themselves, in the same order, and are told numbers of cases only.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from chiplet.config import DeviceOptions
from chiplet.testing.conformance.case import Case, Outcome, Status, Subject, run_case
from chiplet.testing.conformance.running import Run, Stop, stop_by_signals
from chiplet.testing.conformance.suite import Choice, choose_pairs, find_subjects

_MOST_IN_A_DEAL = 16
"""Neighbours often run the same compiled kernel: dealt out apart, each process would compile it."""


class _Ended(NamedTuple):
    """How a case ended, in what two processes can exchange."""

    number: int
    status: Status
    detail: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """How a run is dealt out.

    Attributes:
        jobs: processes.
        device, choice: what each of them finds subjects and cases by.
        time_limit_s: how long the run may take; None for no limit.
    """

    jobs: int
    device: DeviceOptions
    choice: Choice
    time_limit_s: float | None = None


def run_shared(
    pairs: Sequence[tuple[Case, Subject]],
    sharing: Sharing,
    *,
    done: Callable[[int], None] = lambda count: None,
) -> Run:
    """Run cases in several processes, to the end or until `running.run_all` would stop.

    A process that dies ends the run, since nobody knows what its case has done to the device.

    Args:
        pairs: what `choose_pairs` gives for the sharing's device and choice.
        sharing: how.
        done: told how many cases have ended, whenever some have.
    """
    start = time.perf_counter()
    ended: list[_Ended] = []
    stopped = ""
    try:
        with stop_by_signals(sharing.time_limit_s), _processes(sharing) as pool:
            deals = _deal(len(pairs), sharing.jobs)
            waiting = {pool.submit(_run_numbers, numbers): numbers for numbers in deals}
            for future in as_completed(waiting):
                ended.extend(_result(future, waiting[future], pairs))
                done(len(ended))
    except Stop as stop:
        stopped = str(stop) if len(ended) < len(pairs) else ""
    outcomes = [
        Outcome(
            case=pairs[each.number][0],
            subject=pairs[each.number][1],
            status=each.status,
            detail=each.detail,
            seconds=each.seconds,
        )
        for each in sorted(ended)
    ]
    return Run(
        outcomes=outcomes,
        num_planned=len(pairs),
        seconds=time.perf_counter() - start,
        stopped=stopped,
    )


def _deal(num_cases: int, jobs: int) -> list[range]:
    """Numbers of neighbouring cases, a few for each process in turn."""
    size = max(1, min(_MOST_IN_A_DEAL, num_cases // (4 * jobs)))
    return [range(first, min(first + size, num_cases)) for first in range(0, num_cases, size)]


def _result(
    future: Future[list[_Ended]], numbers: range, pairs: Sequence[tuple[Case, Subject]]
) -> list[_Ended]:
    try:
        return future.result()
    except BrokenProcessPool:
        # Whose case it was is not known: all that were dealt out end like this.
        case, subject = pairs[numbers[0]]
        raise Stop(
            f"a process died; run with --jobs 1 to see in which case, perhaps soon after "
            f"{subject.name} {case.id},"
        ) from None


@contextmanager
def _processes(sharing: Sharing) -> Generator[ProcessPoolExecutor]:
    """Processes that are gone afterwards, in the midst of a case if need be."""
    pool = ProcessPoolExecutor(
        sharing.jobs,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(sharing,),
    )
    before = multiprocessing.active_children()
    try:
        yield pool
    except BaseException:
        for process in multiprocessing.active_children():
            if process not in before:
                process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


_pairs: list[tuple[Case, Subject]] = []
"""Of a process that was started by `_processes`: what it was told numbers of."""


def _begin(sharing: Sharing) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first process answers.
    subjects = find_subjects(sharing.device, sharing.choice.provider)
    _pairs.extend(choose_pairs(subjects, sharing.choice))


def _run_numbers(numbers: range) -> list[_Ended]:
    ended: list[_Ended] = []
    for number in numbers:
        outcome = run_case(*_pairs[number])
        ended.append(_Ended(number, outcome.status, outcome.detail, outcome.seconds))
    return ended
