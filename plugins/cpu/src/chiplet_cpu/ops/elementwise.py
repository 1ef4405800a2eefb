"""Norms, rotation and activation, with fewer passes over memory than the reference."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm in one call; see `chiplet.api.ops.RmsNorm`."""
    return F.rms_norm(x, weight.shape, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """A residual sum and its norm; see `chiplet.api.ops.AddRmsNorm`."""
    total = x + residual
    return F.rms_norm(total, weight.shape, weight, eps), total


def rotary(q: Tensor, k: Tensor, positions: Tensor, cos_sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotation of queries and keys together; see `chiplet.api.ops.Rotary`."""
    num_heads, half = q.shape[1], q.shape[2] // 2
    cos, sin = cos_sin.index_select(0, positions).unsqueeze(1).chunk(2, dim=-1)
    first, second = torch.cat([q, k], dim=1).to(cos_sin.dtype).chunk(2, dim=-1)
    rotated = torch.empty(
        first.shape[0], first.shape[1], 2 * half, dtype=cos_sin.dtype, device=q.device
    )
    torch.mul(first, cos, out=rotated[..., :half]).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=rotated[..., half:]).addcmul_(first, sin)
    both = rotated.to(q.dtype)
    return both[:, :num_heads], both[:, num_heads:]


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, without a copy in a wider type; see `chiplet.api.ops.SiluMul`."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)
