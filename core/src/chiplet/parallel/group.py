"""RankGroup: the ranks that share the layers of one model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from chiplet.api import Communicator
from chiplet.parallel.trees import join_trees

JoinShards = Callable[[Sequence[Tensor]], Tensor]
"""One tensor that has another value on each rank; see `chiplet.api.SpmdPlatform`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankGroup:
    """The ranks that share the layers of one model.

    Attributes:
        size: number of ranks.
        local_ranks: those of this process: one, or all.
        communicator: None where there is one rank.
        join_shards: None where this process holds one rank.
    """

    size: int = 1
    local_ranks: tuple[int, ...] = (0,)
    communicator: Communicator | None = None
    join_shards: JoinShards | None = None

    @property
    def is_shared(self) -> bool:
        """Whether there is more than one rank."""
        return self.size > 1

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum over ranks."""
        assert self.communicator is not None
        return self.communicator.all_reduce(x)

    def all_gather(self, x: Tensor) -> Tensor:
        """Every rank's slice of the last dimension, joined in order.

        Shapes: x `[num_rows, width]`; returns `[num_rows, size * width]`.
        """
        assert self.communicator is not None
        slices = self.communicator.all_gather(x)  # [size, num_rows, width]
        return slices.transpose(0, 1).flatten(1)

    def agreed(self, x: Tensor) -> Tensor:
        """What rank 0 has, where ranks are processes that might have come to something else.

        Shapes: that of `x`.
        """
        if not self.is_shared or len(self.local_ranks) == self.size:
            return x
        assert self.communicator is not None
        return self.communicator.broadcast(x, 0)

    def join(self, shards: Sequence[Any]) -> Any:
        """What each local rank holds, as one value that stands for all of them.

        Args:
            shards: one per local rank: tensors, or equal trees of tuples, lists, dicts and
                dataclasses with tensors as leaves.
        """
        assert len(shards) == len(self.local_ranks)
        if self.join_shards is None:
            return shards[0]
        return join_trees(shards, self.join_shards)


ONE_RANK = RankGroup()
"""The group of a model that is not shared."""
