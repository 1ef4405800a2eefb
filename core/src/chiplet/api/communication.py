"""Communication: collectives among the ranks that share one model.

A rank is one device's share of the work. Either each rank is a process of its own, or one process
drives the devices of all ranks with one program (see `SpmdPlatform`). Layers do not know which:
they call the same collectives on tensors of the shapes that one rank sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from chiplet.api.features import Feature
from chiplet.api.provider import Provider
from chiplet.config import Dtype

if TYPE_CHECKING:
    import torch


class GroupKind(StrEnum):
    """What the ranks of a group share; the name in `--use communication/KIND=NAME`."""

    TENSOR = "tp"
    """Slices of the same layers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """All ranks of an engine, and which of them live in this process.

    Attributes:
        world_size: number of ranks.
        local_ranks: those of this process: one, or all.
        rendezvous: folder that all processes of the engine can write to and nobody else can,
            empty where there is one process only. A communicator may meet its peers there, under
            file names that begin with its provider's name.
    """

    world_size: int = 1
    local_ranks: tuple[int, ...] = (0,)
    rendezvous: str = ""

    @property
    def is_one_process(self) -> bool:
        """Whether all ranks live in this process."""
        return len(self.local_ranks) == self.world_size


ONE_PROCESS = Topology()
"""A single rank."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommunicationRequest:
    """One group of ranks. Every rank of the group asks with an equal request.

    Attributes:
        group: what the ranks share.
        ranks: members in order; place i of this tuple is rank i of the group.
        dtype: type of activations; token ids (int32) travel too.
        size_classes_bytes: sizes of the messages to expect, smallest first: that of one token,
            of a full decode step and of a full prefill step.
        is_captured: collectives will be recorded in device graphs and replayed.
        is_one_program: all ranks live in one process, and collectives run inside its program.
        features: derived from the fields above; checked before `assess`.
    """

    group: GroupKind
    ranks: tuple[int, ...]
    dtype: Dtype
    size_classes_bytes: tuple[int, ...] = ()
    is_captured: bool = False
    is_one_program: bool = False

    @property
    def world_size(self) -> int:
        """Ranks in the group."""
        return len(self.ranks)

    @property
    def features(self) -> frozenset[Feature]:
        """What goes beyond the plain case."""
        needed: set[Feature] = set()
        if self.is_captured:
            needed.add(Feature.CAPTURED_COLLECTIVES)
        if self.is_one_program:
            needed.add(Feature.ONE_PROGRAM)
        return frozenset(needed)


class Communicator(Protocol):
    """Collectives of one group.

    All but `connect` and `close` are in the returning form: arguments are never changed, results
    are fresh. Every rank makes the same calls in the same order. Results are the same bits on
    every rank that gets the same result. Where the device has a queue, a collective is queued
    like any other operation, and does not block the host.

    Shapes: tensors are contiguous or made so; `size` below is the number of ranks.
    """

    def connect(self) -> None:
        """Meet the other ranks; called once, after all ranks are known to have chosen alike.

        Blocks until all have come.

        Raises:
            Exception: a rank did not come in time.
        """
        ...

    def close(self) -> None:
        """Let go of connections; harmless when repeated, or when a peer is gone."""
        ...

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """The sum over ranks, on every rank. Shapes: that of `x`."""
        ...

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        """Every rank's tensor, on every rank. Shapes: returns `[size, *x.shape]`."""
        ...

    def reduce_scatter(self, x: torch.Tensor) -> torch.Tensor:
        """Rank r gets the sum over ranks of `x[r]`. Shapes: x `[size, ...]`; returns `[...]`."""
        ...

    def all_to_all(self, x: torch.Tensor) -> torch.Tensor:
        """Rank r gets `x[r]` of every rank. Shapes: x `[size, ...]`; returns the same."""
        ...

    def broadcast(self, x: torch.Tensor, source: int) -> torch.Tensor:
        """The tensor of rank `source`. Shapes: that of `x`, which all ranks give alike."""
        ...

    def send(self, x: torch.Tensor, target: int) -> None:
        """Give a tensor to a rank that receives it.

        Raises:
            RuntimeError: the ranks live in one program, where none acts alone.
        """
        ...

    def recv(self, like: torch.Tensor, source: int) -> torch.Tensor:
        """The tensor that a rank sends. Shapes: shape and type of `like`, which is not read.

        Raises:
            RuntimeError: the ranks live in one program, where none acts alone.
        """
        ...

    def barrier(self) -> None:
        """Return when all ranks have called it. Blocks the host; not for use within a step."""
        ...


class CommunicationProvider(Provider[CommunicationRequest, Communicator], Protocol):
    """Offers collectives; `build` must not wait for other ranks, `connect` does."""


@runtime_checkable
class SpmdPlatform(Protocol):
    """What a platform adds whose one process drives the devices of all ranks with one program.

    Model, step and KV pool have the shapes that one rank sees. Where ranks hold different values
    (slices of weights, the number of a rank's first vocabulary row), core makes the value of each
    rank and gives all to `join_shards`; whatever did not pass through it is the same on all ranks.
    KV tensors are the exception: each rank has its own, and nobody joins them, since they start
    empty. Results of a step are the same on all ranks; the platform takes those of any.
    """

    def span(self, num_ranks: int) -> None:
        """Take so many devices for one program; called once, after `activate`.

        Raises:
            ValueError: there are not so many; the message says how many there are.
        """
        ...

    def join_shards(self, shards: Sequence[torch.Tensor]) -> torch.Tensor:
        """One tensor that has another value on each rank.

        Shapes: one per rank, in order, all alike; the result shows the same shape and type inside
        the program. Never called for fewer tensors than ranks. May take over the tensors.
        """
        ...


@runtime_checkable
class SharedPlatform(Protocol):
    """What a platform adds one of whose devices several ranks share, each a process of its own.

    Of any other platform each rank takes a device: the one that the user named, and those after it.
    """

    def take_share(self, rank: int, num_ranks: int) -> str:
        """Keep to one rank's part of the device from now on; called once, before `activate`.

        `memory` counts this part alone, or an equal part of what all ranks have together.

        Returns:
            What it is, for people, like '16 cores of node 0'.

        Raises:
            ValueError: the device cannot be shared so; the message says what is allowed.
        """
        ...
