"""What a step needs to attend, and how many programs share the keys of a request."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from triton import cdiv

_MAX_SPLITS = 64
_PROGRAMS_PER_CORE = 4


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What a step needs to attend; all tensors are the batch's own.

    Attributes:
        num_splits: programs that share the keys of one decoding request.
        tree_bits: of the batch; None where no request has a tree.
    """

    num_decodes: int
    num_extends: int
    num_splits: int
    kv_rows: Tensor
    query_starts: Tensor
    kv_lengths: Tensor
    page_table: Tensor
    positions: Tensor
    tree_bits: Tensor | None


def num_splits(*, programs: int, longest: int, num_cores: int, keys: int) -> int:
    """As many as fill the device, and no more than there are blocks of keys.

    Args:
        programs: that there are without splits.
        longest: tokens that a request may have.
        num_cores: of the device.
        keys: of a block.
    """
    wanted = _PROGRAMS_PER_CORE * num_cores // max(1, programs)
    return max(1, min(wanted, cdiv(longest, 2 * keys), _MAX_SPLITS))
