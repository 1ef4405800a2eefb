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
        table = scaling.amplitude * torch.cat([angles.cos(), angles.sin()], dim=-1)
        self._cos_sin = table.float().to(context.device)  # [max_positions, head_dim]

    def __call__(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Shapes: q `[num_tokens, num_heads, head_dim]`; k `[num_tokens, num_kv_heads,
        head_dim]`; positions `[num_tokens] int32`; returns rotated q and k.
        """
        return self._run(q, k, positions, self._cos_sin)


def scaled_frequencies(head_dim: int, theta: float, scaling: RopeScaling) -> Tensor:
    """Rotation per position of each pair of elements, in radians, `[head_dim / 2] float64`.

    Source: arXiv:2104.09864, eq. 15, for the plain ones; the llama3 rule is that of the Llama 3.1
    release: wavelengths above `original / low_freq_factor` are stretched by `factor`, those below
    `original / high_freq_factor` stay, linear in between. YaRN, arXiv:2309.00071, section 3.2, is
    linear in the number of the pair instead.

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
    if scaling.kind == "yarn":
        kept = _yarn_share(head_dim, theta, scaling)
        return frequencies * (kept + (1 - kept) / scaling.factor)
    raise ModelError(
        f"Rope scaling '{scaling.kind}' is unknown; served: default, linear, llama3, yarn.",
        remedy="Use a checkpoint with one of these.",
    )


def _yarn_share(head_dim: int, theta: float, scaling: RopeScaling) -> Tensor:
    """Of each frequency the share that is kept, `[head_dim / 2] float64`."""

    def pair(turns: float) -> float:
        """Number of the pair that turns so often in the original context."""
        radians = turns * 2 * math.pi / scaling.original_context_length
        return -head_dim * math.log(radians) / (2 * math.log(theta))

    first = max(math.floor(pair(scaling.beta_fast)), 0)
    last = min(math.ceil(pair(scaling.beta_slow)), head_dim - 1)
    pairs = torch.arange(head_dim // 2).double()
    # Where both are the same, the published code keeps a slope of a thousandth.
    return 1 - ((pairs - first) / max(last - first, 0.001)).clamp(0, 1)
