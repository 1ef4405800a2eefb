"""Sharding: how a layer is cut among the ranks of a group.

A model file names the way at construction (`shard=Shard.OUTPUT`); the numbers are found here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

import torch
from torch import Tensor

from chiplet.errors import ConfigError, ModelError


class Shard(Enum):
    """What each rank of a group holds and computes of a linear layer."""

    NONE = auto()
    """All of it; every rank has the whole result."""
    OUTPUT = auto()
    """A slice of the outputs, which the rank keeps for the layer that follows."""
    INPUT = auto()
    """A slice of the inputs; results are summed over ranks, so that every rank has the whole."""
    GATHERED = auto()
    """A slice of the outputs; slices are gathered, so that every rank has the whole result."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Which run of a dimension each rank holds; all ranks hold equally much.

    Attributes:
        dim: the dimension that is cut.
        length: its elements in the whole tensor.
        width: elements of a rank.
        starts: first element of each rank; a run that reaches past `length` is filled with zeros.
    """

    dim: int
    length: int
    width: int
    starts: tuple[int, ...]

    def take(self, tensor: Tensor, rank: int) -> Tensor:
        """A rank's part of a tensor, a copy unless it is the whole.

        The dimension may have fewer steps than `length`, each of which codes several elements
        (packed integers, scales of groups).

        Raises:
            ModelError: the cut does not fall between two steps.
        """
        if self.width == self.length:
            return tensor
        steps = tensor.shape[self.dim]
        start, stop = self.starts[rank], min(self.starts[rank] + self.width, self.length)
        if start >= self.length:
            start = stop = self.length
        bounds = (start * steps, stop * steps, self.width * steps)
        if any(each % self.length for each in bounds):
            raise ModelError(
                f"{self.length} elements coded in {steps} steps cannot be cut at {start}, between "
                f"ranks of {self.width} elements each.",
                remedy="Lower --tensor-parallel-size, or take an unquantized checkpoint.",
            )
        first, last, width = (each // self.length for each in bounds)
        part = tensor.narrow(self.dim, first, last - first)
        if last - first == width:
            return part.clone(memory_format=torch.contiguous_format)
        shape = list(tensor.shape)
        shape[self.dim] = width - (last - first)
        zeros = torch.zeros(shape, dtype=tensor.dtype, device=tensor.device)
        return torch.cat([part, zeros], dim=self.dim)


def share(count: int, size: int, what: str) -> int:
    """How many of `count` things each of `size` ranks holds.

    Raises:
        ConfigError: they cannot be shared out equally.
    """
    if count % size:
        allowed = ", ".join(str(each) for each in range(1, count + 1) if count % each == 0)
        raise ConfigError(
            f"tensor-parallel-size is {size}; the model's {count} {what} can be shared by "
            f"{allowed} ranks.",
            remedy="Give --tensor-parallel-size one of these.",
        )
    return count // size


def check_heads(num_heads: int, num_kv_heads: int, size: int) -> None:
    """Refuse a number of ranks among which a model's heads cannot be shared out.

    Raises:
        ConfigError: with the numbers that are allowed.
    """
    allowed = [
        each
        for each in range(1, num_heads + 1)
        if num_heads % each == 0 and (num_kv_heads % each == 0 or each % num_kv_heads == 0)
    ]
    if size not in allowed:
        raise ConfigError(
            f"tensor-parallel-size is {size}; the model's {num_heads} attention heads with "
            f"{num_kv_heads} key heads can be shared by {', '.join(map(str, allowed))} ranks.",
            remedy="Give --tensor-parallel-size one of these.",
        )


def share_or_repeat(count: int, size: int, what: str) -> int:
    """How many of `count` things each rank holds; if there are fewer than ranks, ranks share one.

    Raises:
        ConfigError: they can be neither shared out nor repeated equally.
    """
    return 1 if count < size and size % count == 0 else share(count, size, what)


def cut_evenly(length: int, size: int, what: str, *, dim: int, unit: int = 1) -> Cut:
    """Consecutive runs of whole units.

    Raises:
        ConfigError: the units cannot be shared out equally.
    """
    width = share(length // unit, size, what) * unit
    return Cut(dim, length, width, tuple(rank * width for rank in range(size)))


def cut_or_repeat(length: int, size: int, what: str, *, dim: int, unit: int = 1) -> Cut:
    """Consecutive runs of whole units; of fewer units than ranks, neighbours hold the same one.

    Raises:
        ConfigError: the units can be neither shared out nor repeated equally.
    """
    num_units = length // unit
    width = share_or_repeat(num_units, size, what) * unit
    starts = tuple(rank * num_units // size * unit for rank in range(size))
    return Cut(dim, length, width, starts)


def cut_padded(length: int, size: int, *, dim: int) -> Cut:
    """Consecutive runs, where zeros make up what the last ranks lack."""
    width = -(-length // size)
    return Cut(dim, length, width, tuple(rank * width for rank in range(size)))
