"""What a step needs to attend."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from chiplet_triton.attention.prefixes import SharedPrefixes
from chiplet_triton.attention.tiling import DecodeTiling


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What a step needs to attend; tensors are the batch's own, but for those of prefixes.

    Attributes:
        decode_tiling: how decodes are cut.
        num_splits: programs that share the keys of one decoding request.
        tree_bits: of the batch; None where no request has a tree.
        prefixes: what decodes share; None where nobody looked.
    """

    num_decodes: int
    num_extends: int
    decode_tiling: DecodeTiling
    num_splits: int
    kv_rows: Tensor
    query_starts: Tensor
    kv_lengths: Tensor
    page_table: Tensor
    positions: Tensor
    tree_bits: Tensor | None
    prefixes: SharedPrefixes | None
