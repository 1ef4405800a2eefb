"""Ranks as threads of this process: each with its own provider, and its own device if need be."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from chiplet.api import BuildContext, CommunicationProvider

ResultT = TypeVar("ResultT")

_TIMEOUT_S = 60.0
_LAST_WORDS_S = 10.0


@dataclass(frozen=True, slots=True)
class Ranks:
    """One communication provider, as each rank of an engine would have it.

    Attributes:
        make: the provider of one rank and where it runs, for a rank, the number of ranks and the
            rendezvous folder; raises Skipped where there are too few devices.
    """

    make: Callable[[int, int, str], tuple[CommunicationProvider, BuildContext]]


def on_ranks(
    size: int, work: Callable[[int], ResultT], *, timeout_s: float = _TIMEOUT_S
) -> list[ResultT]:
    """What `work` gives on each of `size` ranks, which run at the same time.

    Raises:
        AssertionError: a rank did not finish in time; its thread is left behind.
        BaseException: what a rank raised, and not what its peers then missed of it.
    """
    results: dict[int, ResultT] = {}
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            results[rank] = work(rank)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for each in threads:
        each.start()
    for each in threads:
        # A rank that failed leaves its peers waiting; but what failed first may only follow from
        # another's finding, which a busy machine brings a little later.
        each.join(timeout_s if not errors else _LAST_WORDS_S)
    if errors:
        raise min(errors, key=_consequence)
    late = [rank for rank, each in enumerate(threads) if each.is_alive()]
    assert not late, f"ranks {late} of {size} did not finish within {timeout_s:g} s"
    return [results[rank] for rank in range(size)]


def _consequence(error: BaseException) -> int:
    """How likely an error only follows from another rank's.

    A rank that found something wrong closes its connections before it is heard of here, and its
    peers may complain of that first.
    """
    if isinstance(error, AssertionError):
        return 0
    return 2 if isinstance(error, threading.BrokenBarrierError) else 1
