"""Reading tensors out of a file piece by piece, so that little is in memory twice.

Plain reads, not a mapped file: pages of a mapping count as the process's memory until they are
unmapped, which would double the memory of a model while it loads.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from chiplet.errors import ModelError

PIECE_ELEMENTS = 1 << 18
"""Elements converted at a time: small enough for a cache, and too little to fragment the heap."""


def read_bytes_into(file: BinaryIO, offset_bytes: int, target: Tensor, path: Path) -> None:
    """Fills a tensor with bytes of a file.

    Shapes: `target` is contiguous, of any dtype, on the host.
    Mutates: `target` and the file's position.

    Raises:
        ModelError: the file ends too early.
    """
    view = target.reshape(-1).view(torch.uint8).numpy().data
    file.seek(offset_bytes)
    num_read = 0
    # One read may give less than asked for, 2 GiB at the most.
    while num_read < len(view):
        count = file.readinto(view[num_read:])  # pyright: ignore[reportAttributeAccessIssue]
        if not count:
            raise ModelError(f"{path} is cut short.", remedy="Download it again.")
        num_read += count


def fill_in_pieces(
    target: Tensor, group_elements: int, read_groups: Callable[[int, int], Tensor]
) -> None:
    """Fills a tensor from pieces that are read one after another, converting to its dtype.

    Args:
        target: contiguous, a multiple of `group_elements` in all.
        group_elements: elements that cannot be read apart.
        read_groups: gives groups `[begin, end)` as a tensor of any shape and dtype.
    """
    flat = target.reshape(-1)
    num_groups = flat.numel() // group_elements
    step = max(1, PIECE_ELEMENTS // group_elements)
    for begin in range(0, num_groups, step):
        end = min(begin + step, num_groups)
        piece = read_groups(begin, end)
        flat[begin * group_elements : end * group_elements].copy_(piece.reshape(-1))
