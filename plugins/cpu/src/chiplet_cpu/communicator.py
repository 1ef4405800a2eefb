"""Collectives among processes of one host, through memory that they share."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Final

import torch
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
from chiplet_cpu import native
from chiplet_cpu.group_memory import SharedFiles, is_possible, share

_NAME = "shared-memory"
_CONNECT_LIMIT_S = 120.0

_MAX_RANKS = 64
"""Each has two messages for each other one in the memory, and watches all of them."""

# The kinds of sums of kernels/group.h.
_KINDS: Final = {
    torch.float32: native.DTYPE_CODES["float32"],
    torch.bfloat16: native.DTYPE_CODES["bfloat16"],
    torch.float16: native.DTYPE_CODES["float16"],
    torch.int32: 3,
}


class SharedMemoryCommunicator:
    """Collectives that kernels carry out, so that a recorded step repeats them with the rest.

    Sums are computed in float32, in the order of ranks, and rounded once. A collective whose peer
    has gone raises RuntimeError with the number of the rank, as does every one after it.
    """

    def __init__(self, path: Path, rank: int, size: int) -> None:
        """Not connected yet.

        Args:
            path: of the socket at which ranks meet.
            rank: of this process.
            size: number of ranks.
        """
        self._path = path
        self._rank = rank
        self._size = size
        self._files: SharedFiles | None = None
        # Address of the kernels' side; tapes hold it as long as the process lives.
        self._group = 0

    def connect(self) -> None:
        """Meet the other ranks in the rendezvous folder."""
        num_bytes = native.library.group_memory_bytes(self._size)
        files = share(self._path, self._rank, self._size, num_bytes, limit_s=_CONNECT_LIMIT_S)
        peers = array("i", files.peers)
        address, _ = peers.buffer_info()
        self._group = native.library.group_open(files.memory, self._rank, self._size, address)
        if not self._group:
            files.close()
            raise MemoryError(f"{num_bytes} bytes of shared memory cannot be mapped")
        self._files = files

    def close(self) -> None:
        """Let go of the memory, and have the others know."""
        files, self._files = self._files, None
        if files is not None:
            native.library.group_close(self._group)
            files.close()

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum over ranks."""
        x, kind = x.contiguous(), _kind(x)
        out = torch.empty_like(x)
        native.library.group_all_reduce(
            self._connected(), kind, x.data_ptr(), x.numel(), out.data_ptr()
        )
        return out

    def all_gather(self, x: Tensor) -> Tensor:
        """Every rank's tensor, `[size, *x.shape]`."""
        x = x.contiguous()
        out = torch.empty((self._size, *x.shape), dtype=x.dtype)
        native.library.group_all_gather(self._connected(), x.data_ptr(), x.nbytes, out.data_ptr())
        return out

    def reduce_scatter(self, x: Tensor) -> Tensor:
        """The sum over ranks of their `x[rank]`."""
        x, kind = x.contiguous(), _kind(x)
        out = torch.empty(x.shape[1:], dtype=x.dtype)
        native.library.group_reduce_scatter(
            self._connected(), kind, x.data_ptr(), out.numel(), out.data_ptr()
        )
        return out

    def all_to_all(self, x: Tensor) -> Tensor:
        """`x[rank]` of every rank."""
        x = x.contiguous()
        out = torch.empty_like(x)
        num_bytes = x.nbytes // self._size
        native.library.group_all_to_all(self._connected(), x.data_ptr(), num_bytes, out.data_ptr())
        return out

    def broadcast(self, x: Tensor, source: int) -> Tensor:
        """The tensor of rank `source`."""
        x = x.contiguous()
        out = torch.empty_like(x)
        native.library.group_broadcast(
            self._connected(), source, x.data_ptr(), x.nbytes, out.data_ptr()
        )
        return out

    def send(self, x: Tensor, target: int) -> None:
        """Give a tensor to a rank; of a long one, waits until most is taken."""
        x = x.contiguous()
        native.library.group_send(self._connected(), target, x.data_ptr(), x.nbytes)

    def recv(self, like: Tensor, source: int) -> Tensor:
        """The tensor that a rank sends."""
        out = torch.empty(like.shape, dtype=like.dtype)
        native.library.group_recv(self._connected(), source, out.nbytes, out.data_ptr())
        return out

    def barrier(self) -> None:
        """Return when all ranks have called it."""
        native.library.group_barrier(self._connected())

    def _connected(self) -> int:
        assert self._group, "connect() comes before any collective"
        return self._group


def _kind(x: Tensor) -> int:
    if x.dtype not in _KINDS:
        allowed = ", ".join(str(each).removeprefix("torch.") for each in _KINDS)
        raise TypeError(f"sums over ranks of {x.dtype}; allowed are {allowed}")
    return _KINDS[x.dtype]


class SharedMemoryProvider:
    """Serves any group whose ranks are processes of one Linux host."""

    name = _NAME
    accepts = frozenset({Feature.CAPTURED_COLLECTIVES})

    def __init__(self, topology: Topology) -> None:
        self._topology = topology

    def assess(self, request: CommunicationRequest) -> Verdict:
        """Yes where the kernels could be built, for as many ranks as it is made for."""
        if not native.is_available():
            return No.because("build", native.explanation(), native.remedy())
        if not is_possible():
            return No.because("system", "memory is shared as Linux does it")
        if request.world_size > _MAX_RANKS:
            return No.because("ranks", f"{request.world_size}; at most {_MAX_RANKS}")
        return Yes(Tier.VENDOR, "through memory that ranks share")

    def build(
        self, request: CommunicationRequest, context: BuildContext
    ) -> SharedMemoryCommunicator:
        """Not connected yet."""
        rank = request.ranks.index(self._topology.local_ranks[0])
        path = Path(self._topology.rendezvous) / f"{_NAME}-{request.group}"
        return SharedMemoryCommunicator(path, rank, request.world_size)
