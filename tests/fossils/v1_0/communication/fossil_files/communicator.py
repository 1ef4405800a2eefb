import time
from itertools import count
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from chiplet.api import (
    BuildContext,
    CommunicationRequest,
    Communicator,
    No,
    Tier,
    Topology,
    Verdict,
    Yes,
)


class FilesCommunicator:
    """Collectives through files named by call and rank."""

    def __init__(self, rank: int, size: int, folder: Path) -> None:
        self._rank, self._size, self._folder = rank, size, folder
        self._calls = count()

    def connect(self) -> None:
        """Wait until all have come."""
        self._folder.mkdir(exist_ok=True)
        self.barrier()

    def close(self) -> None:
        """Nothing is open."""

    def all_gather(self, x: Tensor) -> Tensor:
        """`[size, *x.shape]`: every collective here is this one."""
        call = next(self._calls)
        mine = x.cpu().clone(memory_format=torch.contiguous_format)
        self._write(f"{call}-{self._rank}", mine)
        parts = [self._read(f"{call}-{rank}", mine) for rank in range(self._size)]
        # Whoever wrote this call has read the one before: its files are of no use any more.
        (self._folder / f"{call - 1}-{self._rank}.npy").unlink(missing_ok=True)
        return torch.stack(parts).to(x.device)

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum, in float32 for narrow types, in the order of ranks."""
        wide = torch.float32 if x.is_floating_point() and x.itemsize < 4 else x.dtype
        return self.all_gather(x).to(wide).sum(0).to(x.dtype)

    def reduce_scatter(self, x: Tensor) -> Tensor:
        """`[...]` of `[size, ...]`."""
        return self.all_reduce(x)[self._rank].clone()

    def all_to_all(self, x: Tensor) -> Tensor:
        """What every rank has for this one."""
        return self.all_gather(x)[:, self._rank].contiguous()

    def broadcast(self, x: Tensor, source: int) -> Tensor:
        """The tensor of one rank."""
        return self.all_gather(x)[source].clone()

    def send(self, x: Tensor, target: int) -> None:
        """Leave a file for one rank, when it has taken the one before."""
        path = self._folder / f"to-{target}-{self._rank}.npy"
        while path.exists():
            time.sleep(0.0005)
        self._write(path.stem, x.cpu().clone(memory_format=torch.contiguous_format))

    def recv(self, like: Tensor, source: int) -> Tensor:
        """Take the file."""
        name = f"to-{self._rank}-{source}"
        result = self._read(name, like.cpu())
        (self._folder / f"{name}.npy").unlink()
        return result.to(like.device)

    def barrier(self) -> None:
        """All have called it when all have written."""
        self.all_gather(torch.zeros(1))

    def _write(self, name: str, x: Tensor) -> None:
        temporary = self._folder / f"{name}.{self._rank}.tmp"
        with temporary.open("wb") as file:
            np.save(file, x.reshape(-1).view(torch.uint8).numpy())
        temporary.rename(self._folder / f"{name}.npy")  # whole, or not there

    def _read(self, name: str, like: Tensor) -> Tensor:
        path = self._folder / f"{name}.npy"
        deadline = time.monotonic() + 60
        while not path.exists():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{path} did not come within 60 s")
            time.sleep(0.0005)
        return torch.from_numpy(np.load(path)).view(like.dtype).view(like.shape)


class FilesProvider:
    """Serves ranks that are processes of one host."""

    name = "fossil-files"
    # Neither recorded graphs nor one program for all ranks: core refuses these features by itself.
    accepts = frozenset()

    def __init__(self, topology: Topology) -> None:
        self._topology = topology

    def assess(self, request: CommunicationRequest) -> Verdict:
        """Yes where there is a folder to meet in."""
        if not self._topology.rendezvous:
            return No.because("rendezvous", "there is no folder to meet in")
        return Yes(Tier.GENERIC, "through files")

    def build(self, request: CommunicationRequest, context: BuildContext) -> Communicator:
        """File names begin with the provider's name, so that others may use the folder too."""
        rank = request.ranks.index(self._topology.local_ranks[0])
        folder = Path(self._topology.rendezvous) / f"{self.name}-{request.group}"
        return FilesCommunicator(rank, request.world_size, folder)
