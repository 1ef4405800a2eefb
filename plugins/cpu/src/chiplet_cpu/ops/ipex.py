"""Norms and rotation by Intel Extension for PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from chiplet.api import BuildContext, Feature, No, Op, OpImpl, OpRequest, Tier, Verdict, Yes
from chiplet_cpu import ipex


def _make_rms_norm(operations: Any) -> OpImpl:
    kernel = operations.rmsnorm

    def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Root-mean-square norm; see `chiplet.api.ops.RmsNorm`."""
        return kernel(x, weight, eps)

    return rms_norm


def _make_add_rms_norm(operations: Any) -> OpImpl:
    kernel = operations.rmsnorm

    def add_rms_norm(
        x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """A residual sum and its norm; see `chiplet.api.ops.AddRmsNorm`.

        The extension's own operation for both writes the sum over an argument.
        """
        total = x + residual
        return kernel(total, weight, eps), total

    return add_rms_norm


def _make_rotary(operations: Any) -> OpImpl:
    kernel = operations.rotary_position_embedding

    def rotary(q: Tensor, k: Tensor, positions: Tensor, cos_sin: Tensor) -> tuple[Tensor, Tensor]:
        """Rotation of queries and keys; see `chiplet.api.ops.Rotary`.

        The extension reads sines, then cosines: each token's row is taken out in that order.
        """
        cosines, sines = cos_sin[positions.long()].chunk(2, -1)
        table = torch.cat([sines, cosines], dim=-1)
        places = torch.arange(len(positions)).unsqueeze(0)
        return _rotated(kernel, q, table, places), _rotated(kernel, k, table, places)

    return rotary


def _rotated(kernel: Callable[..., Any], x: Tensor, table: Tensor, places: Tensor) -> Tensor:
    """Shapes: x `[num_tokens, num_heads, head_dim]`; table `[num_tokens, head_dim]`."""
    _, num_heads, head_dim = x.shape
    half = head_dim // 2
    rotated, _, _ = kernel(x.unsqueeze(0), table, places, num_heads, head_dim, half, head_dim)
    return rotated.squeeze(0)


_MAKERS: Mapping[Op, Callable[[Any], OpImpl]] = {
    Op.RMS_NORM: _make_rms_norm,
    Op.ADD_RMS_NORM: _make_add_rms_norm,
    Op.ROTARY: _make_rotary,
}


class IpexOpsProvider:
    """Serves norms and rotation where the extension goes with this torch."""

    name = "ipex"
    accepts: frozenset[Feature] = frozenset()

    def assess(self, request: OpRequest) -> Verdict:
        """Yes if the versions go together; with a score below all others of the plugin."""
        why = ipex.explanation()
        if why:
            return No.because("version", why, ipex.remedy())
        if request.op not in _MAKERS:
            return No.because("op", f"{request.op} is not among {', '.join(_MAKERS)}")
        return Yes(Tier.GENERIC - 10, f"{ipex.DISTRIBUTION} {ipex.installed()}; {ipex.RETIRED}")

    def build(self, request: OpRequest, context: BuildContext) -> OpImpl:
        """The function; imports the extension."""
        return _MAKERS[request.op](ipex.operations())
