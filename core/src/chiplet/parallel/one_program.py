"""Ranks of one program: one process drives the devices of all ranks."""

from __future__ import annotations

from collections.abc import Callable

from chiplet.api import (
    CommunicationRequest,
    Communicator,
    Dtype,
    GroupKind,
    Platform,
    SpmdPlatform,
    Topology,
)
from chiplet.errors import ConfigError
from chiplet.parallel.group import ONE_RANK, RankGroup


def one_program_topology(num_ranks: int) -> Topology:
    """All ranks in this process."""
    return Topology(world_size=num_ranks, local_ranks=tuple(range(num_ranks)))


def ranks_of_one_program(
    platform: Platform,
    topology: Topology,
    communicator_of: Callable[[CommunicationRequest], Communicator],
    dtype: Dtype,
) -> RankGroup:
    """The group of all ranks, whose devices the platform takes.

    Args:
        platform: must be a `SpmdPlatform` if there is more than one rank.
        topology: all ranks in this process.
        communicator_of: chooses the collectives of a group.
        dtype: of activations.

    Raises:
        ConfigError: the platform has too few devices.
    """
    if topology.world_size == 1:
        return ONE_RANK
    # Ranks of other platforms are processes; see `chiplet.seats`.
    assert isinstance(platform, SpmdPlatform)
    try:
        platform.span(topology.world_size)
    except ValueError as error:
        raise ConfigError(
            f"tensor-parallel-size is {topology.world_size}: {error}.",
            remedy="Give --tensor-parallel-size a smaller number.",
        ) from error
    ranks = topology.local_ranks
    communicator = communicator_of(
        CommunicationRequest(group=GroupKind.TENSOR, ranks=ranks, dtype=dtype, is_one_program=True)
    )
    communicator.connect()
    return RankGroup(
        size=topology.world_size,
        local_ranks=ranks,
        communicator=communicator,
        join_shards=platform.join_shards,
    )
