"""What products of experts are given: pairs in the order of experts, and how work is cut."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor
from triton import cdiv

from chiplet_triton.device import DOT_PRECISION


class Pairs(NamedTuple):
    """Pairs of a token and one of its experts.

    Attributes:
        weights: `[num_pairs] float32`, in the order of tokens.
        order: `[num_pairs] int64`, which of them they are in the order of experts.
        starts: `[num_experts + 1] int64`, where each expert's begin in that order.
    """

    weights: Tensor
    order: Tensor
    starts: Tensor


class Tiling(NamedTuple):
    """How the products are cut.

    Attributes:
        pairs: of a token and an expert, per program.
        outputs: per program.
        block_k: elements of K per step.
    """

    pairs: int
    outputs: int
    block_k: int
    num_warps: int
    num_stages: int


class Cut(NamedTuple):
    """A tiling, and the blocks of pairs that suffice for any routing."""

    tiling: Tiling
    num_blocks: int

    def grid(self, outputs: int) -> tuple[int, int]:
        """Programs for a number of outputs."""
        return cdiv(outputs, self.tiling.outputs), self.num_blocks

    def constants(self) -> dict[str, Any]:
        """What every kernel is compiled for."""
        return {
            "BLOCK_M": self.tiling.pairs,
            "BLOCK_N": self.tiling.outputs,
            "BLOCK_K": self.tiling.block_k,
            "PRECISION": DOT_PRECISION,
            "num_warps": self.tiling.num_warps,
            "num_stages": self.tiling.num_stages,
        }
