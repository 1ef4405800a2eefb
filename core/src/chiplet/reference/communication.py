"""Reference collectives: torch.distributed over sockets of this host, through main memory."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from chiplet.api import (
    BuildContext,
    CommunicationRequest,
    Feature,
    No,
    Tier,
    Topology,
    Verdict,
    Yes,
)

_CONNECT_TIMEOUT = datetime.timedelta(seconds=120)
_LOOPBACK = "127.0.0.1"


class PlainCommunicator:
    """Collectives that copy to main memory, wait, and copy back.

    Sums of 16-bit types are computed in float32, in the same order on every rank.
    """

    def __init__(self, rank: int, size: int, rendezvous: Path) -> None:
        self._rank = rank
        self._size = size
        self._rendezvous = rendezvous
        self._group: Any = None

    def connect(self) -> None:
        """Meet the other ranks at a file in the rendezvous folder."""
        store = dist.FileStore(  # pyright: ignore[reportPrivateImportUsage] - public, and not listed
            str(self._rendezvous), self._size
        )
        gloo: Any = dist.ProcessGroupGloo  # typed in part only
        options = gloo._Options()
        # The loopback interface: ranks share this host, and nobody else is to connect.
        options._devices = [gloo.create_device(hostname=_LOOPBACK)]
        options._timeout = _CONNECT_TIMEOUT
        self._group = gloo(store, self._rank, self._size, options)

    def close(self) -> None:
        """Drop the connections."""
        self._group = None

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum over ranks."""
        total = _to_host(x).to(_sum_dtype(x)).clone()
        self._connected().allreduce([total]).wait()
        return total.to(x.device, x.dtype)

    def all_gather(self, x: Tensor) -> Tensor:
        """Every rank's tensor, `[size, *x.shape]`."""
        mine = _to_host(x)
        all_of_them = torch.empty((self._size, *x.shape), dtype=x.dtype)
        self._connected()._allgather_base(all_of_them.view(-1), mine.view(-1)).wait()
        return all_of_them.to(x.device)

    def reduce_scatter(self, x: Tensor) -> Tensor:
        """The sum over ranks of their `x[rank]`."""
        return self.all_reduce(x)[self._rank].clone()

    def all_to_all(self, x: Tensor) -> Tensor:
        """`x[rank]` of every rank."""
        mine = _to_host(x)
        result = torch.empty_like(mine)
        self._connected().alltoall_base(result.view(-1), mine.view(-1), [], []).wait()
        return result.to(x.device)

    def broadcast(self, x: Tensor, source: int) -> Tensor:
        """The tensor of rank `source`."""
        result = _to_host(x).clone()
        self._connected().broadcast(result, source).wait()
        return result.to(x.device)

    def send(self, x: Tensor, target: int) -> None:
        """Give a tensor to a rank; waits until it is taken."""
        self._connected().send([_to_host(x)], target, 0).wait()

    def recv(self, like: Tensor, source: int) -> Tensor:
        """The tensor that a rank sends."""
        result = torch.empty(like.shape, dtype=like.dtype)
        self._connected().recv([result], source, 0).wait()
        return result.to(like.device)

    def barrier(self) -> None:
        """Return when all ranks have called it."""
        self._connected().barrier().wait()

    def _connected(self) -> Any:
        assert self._group is not None, "connect() comes before any collective"
        return self._group


def _to_host(x: Tensor) -> Tensor:
    return x.contiguous().to("cpu")


def _sum_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32) if x.is_floating_point() else x.dtype


class ReferenceCommunication:
    """Serves any group whose ranks are processes of one host."""

    name = "reference"
    accepts = frozenset(Feature)

    def __init__(self, topology: Topology) -> None:
        self._topology = topology

    def assess(self, request: CommunicationRequest) -> Verdict:
        """Yes where each rank is a process that may wait on the host."""
        refused: Sequence[tuple[str, bool]] = (
            ("captured in a device graph", request.is_captured),
            ("part of one program", request.is_one_program),
        )
        for what, is_asked in refused:
            if is_asked:
                return No.because("host", f"it waits on the host, and cannot be {what}")
        if not dist.is_available() or not hasattr(dist, "ProcessGroupGloo"):
            return No.because("torch", "this torch is built without distributed collectives")
        return Yes(Tier.REFERENCE, "through main memory")

    def build(self, request: CommunicationRequest, context: BuildContext) -> PlainCommunicator:
        """Not connected yet."""
        rank = request.ranks.index(self._topology.local_ranks[0])
        rendezvous = Path(self._topology.rendezvous) / f"reference-{request.group}"
        return PlainCommunicator(rank, request.world_size, rendezvous)
