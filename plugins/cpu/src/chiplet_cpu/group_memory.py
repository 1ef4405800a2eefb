"""How processes of one host come to share memory, and know when one of them is gone."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

SOCKET_MODE = 0o600

_RETRY_S = 0.01
_RANK_BYTES = 4
_HELLO = b"!"


@dataclass(frozen=True, slots=True)
class SharedFiles:
    """One rank's open files; nothing is left of them in any folder.

    Attributes:
        memory: what all ranks share, zeros at first.
        mine: held open by this rank alone: where it is closed, the others' `peers` hang up.
        peers: of each rank, in order, this one among them.
    """

    memory: int
    mine: int
    peers: tuple[int, ...]

    def close(self) -> None:
        """Close all; once."""
        for each in (self.memory, self.mine, *self.peers):
            os.close(each)


def is_possible() -> bool:
    """Whether this system has what it takes."""
    return hasattr(os, "memfd_create")


def share(path: Path, rank: int, size: int, num_bytes: int, *, limit_s: float) -> SharedFiles:
    """Meet the other ranks at a socket, and get what all share; blocks until all have come.

    Rank 0 makes everything and hands it round as open files, so that whoever is killed leaves no
    memory behind.

    Args:
        path: of the socket, in a folder that only these ranks may write to.
        rank: of this process.
        size: number of ranks.
        num_bytes: of the memory.
        limit_s: how long this rank waits for the others.

    Raises:
        TimeoutError: not all came.
    """
    end_s = time.monotonic() + limit_s
    if rank == 0:
        with _others(path, size, end_s) as others:
            return _hand_round(others, num_bytes)
    with _meet(path, end_s) as peer:
        peer.sendall(rank.to_bytes(_RANK_BYTES))
        _, files, _, _ = socket.recv_fds(peer, len(_HELLO), size + 2, socket.MSG_CMSG_CLOEXEC)
    if len(files) != size + 2:
        for each in files:
            os.close(each)
        raise ConnectionError(f"rank 0 ended while rank {rank} met it")
    memory, mine, *peers = files
    return SharedFiles(memory, mine, tuple(peers))


@contextlib.contextmanager
def _others(path: Path, size: int, end_s: float) -> Generator[list[socket.socket]]:
    """A connection to each other rank, in order."""
    with contextlib.ExitStack() as at_end:
        door = at_end.enter_context(socket.socket(socket.AF_UNIX))
        door.bind(str(path))
        at_end.callback(path.unlink, missing_ok=True)
        os.chmod(path, SOCKET_MODE)
        door.listen(size)
        found: dict[int, socket.socket] = {}
        try:
            while len(found) < size - 1:
                door.settimeout(_left_s(end_s))
                peer = at_end.enter_context(door.accept()[0])
                peer.settimeout(_left_s(end_s))
                word = peer.recv(_RANK_BYTES, socket.MSG_WAITALL)
                if len(word) < _RANK_BYTES:
                    raise ConnectionError("a rank ended while it met rank 0")
                found[int.from_bytes(word)] = peer
        except TimeoutError as error:
            raise TimeoutError(f"{len(found) + 1} of {size} ranks came") from error
        # Before anybody hears of it: who has the memory finds nothing in the folder.
        path.unlink()
        yield [found[rank] for rank in sorted(found)]


@contextlib.contextmanager
def _meet(path: Path, end_s: float) -> Generator[socket.socket]:
    """A connection to rank 0, as soon as it is there."""
    while True:
        with socket.socket(socket.AF_UNIX) as peer:
            try:
                peer.settimeout(_left_s(end_s))
                peer.connect(str(path))
            except TimeoutError as error:
                raise TimeoutError("rank 0 did not come") from error
            except (FileNotFoundError, ConnectionRefusedError):
                time.sleep(_RETRY_S)
                continue
            yield peer
            return


def _hand_round(others: Sequence[socket.socket], num_bytes: int) -> SharedFiles:
    memory = os.memfd_create("chiplet-group", os.MFD_CLOEXEC)
    os.ftruncate(memory, num_bytes)
    pipes = [os.pipe() for _ in range(len(others) + 1)]
    peers = tuple(reading for reading, _ in pipes)
    for peer, (_, writing) in zip(others, pipes[1:], strict=True):
        socket.send_fds(peer, [_HELLO], [memory, writing, *peers])
        # Whoever it is for is to be the only one that holds it.
        os.close(writing)
    return SharedFiles(memory, pipes[0][1], peers)


def _left_s(end_s: float) -> float:
    left_s = end_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s
