"""Time of a sum over ranks of one host, by size of the message, beside what its bytes must take.

    python benchmarks/cpu_collectives.py --ranks 2 --providers shared-memory reference

Each rank is a process with one thread. What must be done at least: a copy of the message where
others read it, and a sum of the messages of all; torch does so in the same processes, all at once.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from chiplet.api import BuildContext, CommunicationRequest, Dtype, GroupKind, Topology
from chiplet.reference.communication import ReferenceCommunication
from chiplet.reference.platform import ReferencePlatform
from chiplet_cpu.communicator import SharedMemoryProvider

PROVIDERS = {"shared-memory": SharedMemoryProvider, "reference": ReferenceCommunication}
SIZES_BYTES = (4, 2304, 16 << 10, 144 << 10, 1 << 20, 8 << 20)
ROUNDS = 5


def best_us(action: Callable[[], object], meet: Callable[[], None], repeats: int) -> float:
    """Microseconds of one action, the best of some rounds in which all ranks are busy."""
    found = []
    for _ in range(ROUNDS):
        meet()
        begin_s = time.perf_counter()
        for _ in range(repeats):
            action()
        found.append((time.perf_counter() - begin_s) / repeats)
    return 1e6 * min(found)


def bytes_alone(x: torch.Tensor, others: torch.Tensor, out: torch.Tensor) -> None:
    """What is left of a sum where nobody waits."""
    others[0].copy_(x)
    torch.add(others[1], x, out=out)
    for each in others[2:]:
        out.add_(each)


def work(provider: str, rank: int, size: int, folder: str) -> None:
    """Be a rank; rank 0 prints."""
    torch.set_num_threads(1)
    request = CommunicationRequest(
        group=GroupKind.TENSOR, ranks=tuple(range(size)), dtype=Dtype.FLOAT32
    )
    topology = Topology(world_size=size, local_ranks=(rank,), rendezvous=folder)
    context = BuildContext(ReferencePlatform())
    communicator = PROVIDERS[provider](topology).build(request, context)
    communicator.connect()
    for num_bytes in SIZES_BYTES:
        x = torch.randn(num_bytes // 4)
        others, out = torch.randn(size, len(x)), torch.empty_like(x)
        repeats = max(5, min(500, (4 << 20) // num_bytes))

        taken = best_us(partial(communicator.all_reduce, x), communicator.barrier, repeats)
        least = best_us(partial(bytes_alone, x, others, out), communicator.barrier, repeats)
        if rank == 0:
            print(f"{provider:>14} {num_bytes:>9} B {taken:>10.1f} us, at least {least:>8.1f}")
    communicator.close()


def main() -> None:
    """Start the ranks of each provider in turn."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--ranks", type=int, default=2)
    options.add_argument("--providers", nargs="+", choices=PROVIDERS, default=list(PROVIDERS))
    options.add_argument("--rank", type=int, help="used between the processes of this program")
    options.add_argument("--folder", help="likewise")
    given = options.parse_args()
    if given.rank is not None:
        work(given.providers[0], given.rank, given.ranks, given.folder)
        return
    for provider in given.providers:
        with tempfile.TemporaryDirectory(prefix="chiplet-ranks-") as folder:
            command = [sys.executable, str(Path(__file__)), "--ranks", str(given.ranks)]
            command += ["--providers", provider, "--folder", folder, "--rank"]
            ranks = [subprocess.Popen([*command, str(rank)]) for rank in range(given.ranks)]
            codes = [each.wait() for each in ranks]
            if any(codes):
                sys.exit(f"a rank of {provider} failed")


if __name__ == "__main__":
    main()
