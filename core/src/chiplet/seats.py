"""Seats: where a process stands among the ranks of an engine, and how it joins their group."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from chiplet.api import (
    CommunicationRequest,
    Dtype,
    Execution,
    Platform,
    SharedPlatform,
    SpmdPlatform,
    StepLimits,
    Topology,
)
from chiplet.config import EngineConfig, ModelConfig
from chiplet.errors import ConfigError
from chiplet.parallel.group import RankGroup
from chiplet.parallel.one_program import one_program_topology, ranks_of_one_program
from chiplet.parallel.processes import group_of_processes, tensor_group
from chiplet.parallel.sharding import check_heads
from chiplet.plugins import ChosenDevice, Selector
from chiplet.plugins.agreement import Meeting, connect_together
from chiplet.plugins.self_check.communication import communication_fault


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """The place of this process.

    Attributes:
        topology: of all ranks.
        meeting: with the other ranks; None where there are none, or where nobody is to be asked.
    """

    topology: Topology
    meeting: Meeting | None = None


class Muster(Protocol):
    """Knows how this process comes to its seat.

    Attributes:
        rank: of this process.
    """

    rank: int

    def gather(self) -> None:
        """Have processes for the other ranks; they inherit of this one what it is allowed now."""
        ...

    def seat(self, config: EngineConfig, chosen: ChosenDevice) -> Seat:
        """The seat, once all settings are resolved.

        Raises:
            ConfigError: another rank could not be started.
        """
        ...


class Unaccompanied:
    """Rank 0 as it would choose, without other ranks: nothing is connected and nothing can run."""

    rank = 0

    def gather(self) -> None:
        """Nobody is needed."""

    def seat(self, config: EngineConfig, chosen: ChosenDevice) -> Seat:
        """A seat among ranks that do not exist."""
        size = config.device.tensor_parallel_size
        return Seat(topology=Topology(world_size=size, local_ranks=(0,)))


UNACCOMPANIED = Unaccompanied()


def gather(muster: Muster, platform: Platform, num_ranks: int) -> str:
    """Have all ranks there, each with its part of the device if they share one.

    Returns:
        The part of this process, for people; empty if the device is not shared.

    Raises:
        ConfigError: the device cannot be shared so.
    """
    if num_ranks == 1 or isinstance(platform, SpmdPlatform):
        return ""
    muster.gather()
    if not isinstance(platform, SharedPlatform):
        return ""
    try:
        return platform.take_share(muster.rank, num_ranks)
    except ValueError as error:
        raise ConfigError(
            f"tensor-parallel-size is {num_ranks}: {error}.",
            remedy="Give --tensor-parallel-size another number.",
        ) from error


def take_seat(
    muster: Muster, config: EngineConfig, chosen: ChosenDevice, model: ModelConfig
) -> Seat:
    """The seat of this process; one for all ranks where one program drives their devices.

    Raises:
        ConfigError: so many ranks cannot share the model, or another cannot be started.
    """
    num_ranks = config.device.tensor_parallel_size
    check_heads(model.num_heads, model.num_kv_heads, num_ranks)
    if num_ranks == 1 or isinstance(chosen.platform, SpmdPlatform):
        return Seat(topology=one_program_topology(num_ranks))
    return muster.seat(config, chosen)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The ranks that share the layers, before or after they are connected.

    Attributes:
        request: what was asked for; None where there is nothing to connect.
        eager_because: why steps must run operation by operation; empty if they need not.
    """

    ranks: RankGroup
    request: CommunicationRequest | None = None
    eager_because: str = ""


def group_maker(
    seat: Seat,
    selector: Selector,
    platform: Platform,
    config: EngineConfig,
    model: ModelConfig,
    limits: StepLimits,
) -> Callable[[], Group]:
    """What makes the group of a seat; of ranks that are processes, it is not connected yet.

    Raises:
        ConfigError: nobody offers such collectives, or the devices are too few.
    """
    topology, dtype = seat.topology, Dtype(config.model.dtype)
    if topology.is_one_process:
        ranks = ranks_of_one_program(platform, topology, selector.communicator, dtype)
        return lambda: Group(ranks=ranks)
    is_recorded = not config.device.eager and bool(platform.buckets(limits))
    rows = (1, limits.max_requests, config.schedule.chunked_prefill_size)
    request = tensor_group(
        topology.world_size, dtype, model.hidden_size, rows, is_captured=is_recorded
    )
    return partial(_make_group, selector, platform, topology, request)


def _make_group(
    selector: Selector, platform: Platform, topology: Topology, request: CommunicationRequest
) -> Group:
    eager_because = ""
    is_needed = platform.execution is Execution.STEP
    if request.is_captured and not is_needed and not selector.serves(request):
        eager_because = f"nobody offers {request.world_size} ranks collectives to record"
        request = replace(request, is_captured=False)
    ranks = group_of_processes(topology, selector.communicator(request))
    return Group(ranks=ranks, request=request, eager_because=eager_because)


def connected(group: Group, seat: Seat, selector: Selector, platform: Platform) -> Group:
    """The group with collectives that every rank has connected and found right.

    Raises:
        ConfigError: there are none; on every rank.
    """
    if group.request is None or seat.meeting is None:
        return group
    fault_of = partial(
        communication_fault,
        request=group.request,
        rank=seat.topology.local_ranks[0],
        device=platform.torch_device,
    )
    communicator = connect_together(selector, group.request, seat.meeting, fault_of)
    if communicator is group.ranks.communicator:
        return group
    return replace(group, ranks=group_of_processes(seat.topology, communicator))
