"""Running: cases one after another, until all have run, somebody stops them, or time is up."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from chiplet.testing.conformance.case import Case, Outcome, Subject, run_case

Pair = tuple[Case, Subject]


class Stop(BaseException):
    """Ends a run in the midst of a case; no `Exception`, so that no case swallows it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What came of a list of cases.

    Attributes:
        num_planned: cases that were to run.
        stopped: why fewer ran, and in which case it stopped; empty if all ran.
    """

    outcomes: Sequence[Outcome]
    num_planned: int
    seconds: float
    stopped: str = ""


def run_all(
    pairs: Sequence[Pair],
    *,
    time_limit_s: float | None = None,
    starting: Callable[[Case, Subject], None] = lambda case, subject: None,
) -> Run:
    """Run cases, to the end or until an interrupt, a request to terminate or the time limit.

    Each of these ends the run in the midst of a case, if need be.

    Args:
        pairs: what to run.
        time_limit_s: how long it may take; None for no limit.
        starting: told of each case before it runs.
    """
    start = time.perf_counter()
    outcomes: list[Outcome] = []
    stopped = ""
    try:
        with stop_by_signals(time_limit_s):
            for case, subject in pairs:
                _stop_when_late(start, time_limit_s)
                starting(case, subject)
                outcomes.append(run_case(case, subject))
    except Stop as stop:
        # A signal may also come after the last case.
        if len(outcomes) < len(pairs):
            case, subject = pairs[len(outcomes)]
            stopped = f"{stop} in {subject.name} {case.id}"
    return Run(
        outcomes=outcomes,
        num_planned=len(pairs),
        seconds=time.perf_counter() - start,
        stopped=stopped,
    )


def _stop_when_late(start: float, time_limit_s: float | None) -> None:
    if time_limit_s is not None and time.perf_counter() - start >= time_limit_s:
        raise Stop(_late(time_limit_s))


def _late(time_limit_s: float) -> str:
    return f"stopped after the time limit of {time_limit_s:g} s,"


@contextmanager
def stop_by_signals(time_limit_s: float | None) -> Generator[None]:
    """Turn signals into `Stop`; in another thread than the main one, there are none to turn."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    words = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
    if time_limit_s is not None:
        words[signal.SIGALRM] = _late(time_limit_s)

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stop(words[signal.Signals(number)])

    before = {number: signal.signal(number, stop) for number in words}
    if time_limit_s is not None:
        signal.setitimer(signal.ITIMER_REAL, time_limit_s)
    try:
        yield
    finally:
        if time_limit_s is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
