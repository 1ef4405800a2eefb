"""RotaryEmbedding: positions as rotations of queries and keys."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from chiplet.api import Op
from chiplet.config import RopeScaling
from chiplet.errors import ModelError
from chiplet.layers.context import LayerContext


class RotaryEmbedding:
    """Rotates queries and keys by their positions; one table serves all layers."""

    def __init__(
        self, context: LayerContext, *, head_dim: int, theta: float, scaling: RopeScaling
    ) -> None:
        self._run = context.op(Op.ROTARY)
        frequencies = scaled_frequencies(head_dim, theta, scaling)
        angles = torch.outer(torch.arange(context.max_positions).double(), frequencies)
        table = torch.cat([angles.cos(), angles.sin()], dim=-1).float()
        self._cos_sin = table.to(context.device)  # [max_positions, head_dim]

    def __call__(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Shapes: q `[num_tokens, num_heads, head_dim]`; k `[num_tokens, num_kv_heads,
        head_dim]`; positions `[num_tokens] int32`; returns rotated q and k.
        """
        return self._run(q, k, positions, self._cos_sin)


def scaled_frequencies(head_dim: int, theta: float, scaling: RopeScaling) -> Tensor:
    """Rotation per position of each pair of elements, in radians, `[head_dim / 2] float64`.

    Source: arXiv:2104.09864, eq. 15, for the plain ones; the llama3 rule is that of the Llama 3.1
    release: wavelengths above `original / low_freq_factor` are stretched by `factor`, those below
    `original / high_freq_factor` stay, linear in between.

    Raises:
        ModelError: an unknown kind of scaling.
    """
    exponents = torch.arange(0, head_dim, 2).double() / head_dim
    frequencies = theta**-exponents
    if scaling.kind == "default":
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    if scaling.kind == "llama3":
        turns = scaling.original_context_length * frequencies / (2 * math.pi)
        spread = scaling.high_freq_factor - scaling.low_freq_factor
        kept = ((turns - scaling.low_freq_factor) / spread).clamp(0, 1)
        return frequencies * (kept + (1 - kept) / scaling.factor)
    raise ModelError(
        f"Rope scaling '{scaling.kind}' is unknown; served: default, linear, llama3.",
        remedy="Use a checkpoint with one of these.",
    )
