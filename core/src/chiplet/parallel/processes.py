"""Ranks that are processes: what they ask of a communicator, and the group of one of them."""

from __future__ import annotations

from collections.abc import Sequence

from chiplet.api import CommunicationRequest, Communicator, Dtype, GroupKind, Topology
from chiplet.parallel.group import RankGroup


def tensor_group(
    num_ranks: int, dtype: Dtype, width: int, rows: Sequence[int], *, is_captured: bool
) -> CommunicationRequest:
    """The request for collectives among ranks that share layers.

    Args:
        num_ranks: all of them are in the group.
        dtype: of activations.
        width: of what is summed most often.
        rows: tokens of steps that recur, fewest first.
        is_captured: steps are recorded.
    """
    return CommunicationRequest(
        group=GroupKind.TENSOR,
        ranks=tuple(range(num_ranks)),
        dtype=dtype,
        size_classes_bytes=tuple(each * width * dtype.size_bytes for each in rows),
        is_captured=is_captured,
    )


def group_of_processes(topology: Topology, communicator: Communicator) -> RankGroup:
    """The group as the one rank of this process sees it."""
    return RankGroup(
        size=topology.world_size, local_ranks=topology.local_ranks, communicator=communicator
    )
