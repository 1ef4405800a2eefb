"""Who of a kernel's blocks computes what: tiles of a product, and shares of tiles."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

_MIN_STEPS = 4
"""Fewer steps of a tile cost more to put together than they save."""

_GROUP = 8
"""Row tiles that go through all features together, so that what blocks read fits the cache."""

_SHARE_FLOATS = 64 * 128
_MAX_CONSUMERS = 3


class Problem(NamedTuple):
    """A product in tiles.

    Attributes:
        row_tiles: along the rows of x.
        feature_tiles: along the features of W.
        steps: along K, of each tile.
    """

    row_tiles: int
    feature_tiles: int
    steps: int


class Schedule(ctypes.Structure):
    """Who computes what; the kernel's struct of this name.

    The first `shared_tiles` tiles are cut into equal shares of their steps, one for each block. The
    others are dealt out whole, in turns.
    """

    _fields_ = (
        ("row_tiles", ctypes.c_int),
        ("feature_tiles", ctypes.c_int),
        ("steps", ctypes.c_int),
        ("shared_tiles", ctypes.c_int),
        ("group", ctypes.c_int),
    )


def schedule_of(problem: Problem, most_blocks: int) -> tuple[Schedule, int]:
    """Who computes what, and how many blocks that takes.

    Whole waves of tiles are dealt out. The rest, and one wave with it if there is one, is shared.
    """
    tiles, blocks = problem.row_tiles * problem.feature_tiles, most_blocks
    if tiles < blocks:
        shared, blocks = tiles, min(blocks, max(tiles, tiles * problem.steps // _MIN_STEPS))
    else:
        shared = min(tiles, tiles % blocks + blocks) if tiles % blocks else 0
    return Schedule(*problem, shared, min(_GROUP, problem.row_tiles)), blocks


class Workspace(NamedTuple):
    """Where blocks put shares of tiles; of all products of a device, which run one by one.

    Attributes:
        shares: float32.
        arrivals: int32, zero before and after a launch.
    """

    shares: Tensor
    arrivals: Tensor


@lru_cache(maxsize=16)
def workspace(device: torch.device) -> Workspace:
    """The device's workspace: room for the largest share of each warpgroup that may compute."""
    warpgroups = _MAX_CONSUMERS * torch.cuda.get_device_properties(device).multi_processor_count
    return Workspace(
        torch.empty(warpgroups, _SHARE_FLOATS, dtype=torch.float32, device=device),
        torch.zeros(warpgroups, dtype=torch.int32, device=device),
    )
