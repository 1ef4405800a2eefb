"""Peers: the runners of further ranks, as the runner of rank 0 sees them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from chiplet.api import ShapeBucket
from chiplet.step import StepPlan


class Peers(Protocol):
    """Runners that do what this one does, in the same order, each in a process of its own."""

    def launch(self, plan: StepPlan, bucket: ShapeBucket) -> None:
        """Have all launch a step in a bucket; never blocks."""
        ...

    def prepare(self, bucket: ShapeBucket) -> Callable[[], None]:
        """Have all prepare a bucket; what is returned waits until they have.

        It raises RuntimeError where one of them could not. No step is launched until then.
        """
        ...


class NoPeers:
    """There is one rank."""

    def launch(self, plan: StepPlan, bucket: ShapeBucket) -> None:
        """Nobody to tell."""

    def prepare(self, bucket: ShapeBucket) -> Callable[[], None]:
        """Nobody to wait for."""
        return _nothing


ALONE = NoPeers()


def _nothing() -> None:
    pass
