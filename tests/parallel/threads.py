"""Ranks as threads of one process, with collectives over a shared list."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from chiplet.parallel.group import RankGroup
from chiplet.testing.conformance.ranks import on_ranks as on_threads


class _Board:
    """Where the ranks lay out their tensors; everyone reads before anyone goes on."""

    def __init__(self, size: int) -> None:
        self.tensors: list[Any] = [None] * size
        self.barrier = threading.Barrier(size, timeout=60)


class ThreadCommunicator:
    """Collectives of one rank of a board."""

    def __init__(self, board: _Board, rank: int) -> None:
        self._board, self._rank = board, rank

    def _exchange(self, x: Tensor) -> list[Tensor]:
        self._board.tensors[self._rank] = x
        self._board.barrier.wait()
        tensors = list(self._board.tensors)
        self._board.barrier.wait()
        return tensors

    def connect(self) -> None:
        self._board.barrier.wait()

    def close(self) -> None:
        pass

    def all_reduce(self, x: Tensor) -> Tensor:
        return torch.stack(self._exchange(x)).sum(0)

    def all_gather(self, x: Tensor) -> Tensor:
        return torch.stack(self._exchange(x))

    def reduce_scatter(self, x: Tensor) -> Tensor:
        return self.all_reduce(x)[self._rank]

    def all_to_all(self, x: Tensor) -> Tensor:
        return torch.stack([each[self._rank] for each in self._exchange(x)])

    def broadcast(self, x: Tensor, source: int) -> Tensor:
        return self._exchange(x)[source].clone()

    def send(self, x: Tensor, target: int) -> None:
        raise RuntimeError("not used here")

    def recv(self, like: Tensor, source: int) -> Tensor:
        raise RuntimeError("not used here")

    def barrier(self) -> None:
        self._board.barrier.wait()


def on_ranks(size: int, work: Callable[[RankGroup], Any]) -> list[Any]:
    """What `work` gives on each of `size` ranks."""
    board = _Board(size)

    def run(rank: int) -> Any:
        communicator = ThreadCommunicator(board, rank)
        try:
            return work(RankGroup(size=size, local_ranks=(rank,), communicator=communicator))
        except BaseException:
            board.barrier.abort()
            raise

    return on_threads(size, run)
