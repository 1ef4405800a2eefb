"""Linear layers: kernels of our own for a few rows, torch's product for many."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from triton import cdiv, next_power_of_2

from chiplet.api import (
    Activations,
    BuildContext,
    Feature,
    LinearImpl,
    LinearRequest,
    LinearWeights,
    No,
    Tier,
    Verdict,
    Yes,
)
from chiplet_triton.device import DOT_PRECISION, DeviceTraits, launch_options
from chiplet_triton.kernels.skinny_linear import gemv_kernel, skinny_kernel
from chiplet_triton.linear.quantized import QuantizedLinear
from chiplet_triton.linear.schemes import QUANTIZED_FEATURES, refusal
from chiplet_triton.ops.elementwise import ElementwiseOps

_MAX_ROWS = 64
_MAX_GEMV_K = 16384  # the loop over K is unrolled
_LONG = 8192
_FEW_ROWS, _WIDE = 32, 16384
"""More than so many rows are faster by torch's product, unless outputs are very many (on an H100:
benchmarks/nvidia_notes.md)."""


class Weights(NamedTuple):
    """Weights as they came: weight `[out_features, in_features]`, bias `[out_features]`."""

    weight: Tensor
    bias: Tensor | None


class GemvTiling(NamedTuple):
    """How `gemv_kernel` is cut.

    Attributes:
        block_n: output features per program.
        block_k: elements of K per step.
    """

    block_n: int
    block_k: int
    num_warps: int


class Tiling(NamedTuple):
    """How `skinny_kernel` is cut.

    Attributes:
        block_n: output features per program.
        block_k: elements of K per step.
        splits: programs that share K.
    """

    block_n: int
    block_k: int
    splits: int
    num_warps: int
    num_stages: int


def _max_rows(request: LinearRequest) -> int:
    """Above, torch's product is faster."""
    return _MAX_ROWS if request.out_features >= _WIDE else _FEW_ROWS


class SkinnyLinear:
    """y = x W^T + b, near the speed of reading W for up to 64 rows."""

    def __init__(self, request: LinearRequest, traits: DeviceTraits, device: torch.device) -> None:
        self._k, self._n = request.in_features, request.out_features
        self._traits = traits
        self._max_rows = _max_rows(request)
        self._launch = launch_options(traits)
        self._silu_mul = ElementwiseOps(traits).silu_mul
        # Outputs that share the row's loads, as far as enough programs are left.
        block_n = 4 if self._k > _LONG else 2
        self._gemv_tiling = GemvTiling(block_n, min(next_power_of_2(self._k), 2048), 4)
        self._tilings = {rows: self._tiling(rows, request) for rows in (16, 32, 64)}
        tiles = max(cdiv(self._n, each.block_n) for each in self._tilings.values())
        floats = max(
            cdiv(self._n, each.block_n) * each.splits * each.block_n * rows
            for rows, each in self._tilings.items()
        )
        # Shared by all layers of this request: they run one after another on one stream.
        self._partial = torch.empty(floats, dtype=torch.float32, device=device)
        self._arrivals = torch.zeros(tiles, dtype=torch.int32, device=device)

    def _tiling(self, rows: int, request: LinearRequest) -> Tiling:
        block_n = 64 if self._n >= 64 else max(16, next_power_of_2(self._n))
        block_k = 64 if request.dtype.size_bytes == 4 else 128
        programs = cdiv(self._n, block_n)
        wanted = max(1, 2 * self._traits.num_cores // programs)
        splits = min(wanted, max(1, self._k // (4 * block_k)), 8)
        stage_bytes = (block_n + rows) * block_k * request.dtype.size_bytes
        num_stages = max(
            1, min(3 if rows > _FEW_ROWS else 4, self._traits.shared_bytes // stage_bytes)
        )
        return Tiling(block_n, block_k, splits, 4, num_stages)

    def pack(self, weights: LinearWeights) -> Weights:
        """Keeps both tensors."""
        return Weights(weights.weight, weights.bias)

    def stored(self, packed: Weights) -> LinearWeights:
        """See `chiplet.api.StoredLinear`."""
        return LinearWeights(scheme=None, weight=packed.weight, bias=packed.bias)

    def run(self, x: Tensor, packed: Weights) -> Tensor:
        """The product; see `chiplet.api.LinearImpl.run`."""
        return self._product(x, packed, is_gated=False)

    def run_silu_mul(self, x: Tensor, packed: Weights) -> Tensor:
        """The product with its gate; see `chiplet.api.GatedLinear.run_silu_mul`."""
        return self._product(x, packed, is_gated=True)

    def _product(self, x: Tensor, packed: Weights, *, is_gated: bool) -> Tensor:
        num_rows = x.shape[0]
        if num_rows > self._max_rows or num_rows == 0:
            y = F.linear(x, packed.weight, packed.bias)
            return self._silu_mul(y) if is_gated else y
        y = torch.empty(num_rows, self._n // (1 + is_gated), dtype=x.dtype, device=x.device)
        if num_rows == 1 and self._k <= _MAX_GEMV_K:
            self._gemv(x, packed, y, is_gated=is_gated)
        else:
            self._skinny(x, packed, y, is_gated=is_gated)
        return y

    def _gemv(self, x: Tensor, packed: Weights, y: Tensor, *, is_gated: bool) -> None:
        num_rows, tiling = x.shape[0], self._gemv_tiling
        gemv_kernel[(cdiv(self._n, tiling.block_n),)](
            x,
            packed.weight,
            packed.bias,
            y,
            self._n,
            x.stride(0),
            K=self._k,
            M=num_rows,
            BLOCK_N=tiling.block_n,
            BLOCK_K=tiling.block_k,
            HAS_BIAS=packed.bias is not None,
            IS_GATED=is_gated,
            OVERLAP=self._traits.can_overlap,
            num_warps=tiling.num_warps,
            **self._launch,
        )

    def _skinny(self, x: Tensor, packed: Weights, y: Tensor, *, is_gated: bool) -> None:
        num_rows = x.shape[0]
        block_m = max(16, next_power_of_2(num_rows))
        tiling = self._tilings[block_m]
        skinny_kernel[(cdiv(self._n, tiling.block_n), tiling.splits)](
            x,
            packed.weight,
            packed.bias,
            y,
            self._partial,
            self._arrivals,
            num_rows,
            self._n,
            x.stride(0),
            K=self._k,
            BLOCK_M=block_m,
            BLOCK_N=tiling.block_n,
            BLOCK_K=tiling.block_k,
            SPLITS=tiling.splits,
            HAS_BIAS=packed.bias is not None,
            IS_GATED=is_gated,
            PRECISION=DOT_PRECISION,
            OVERLAP=self._traits.can_overlap,
            num_warps=tiling.num_warps,
            num_stages=tiling.num_stages,
            **self._launch,
        )


class TritonLinearProvider:
    """Serves plain weights in 16 and 32 bits, and weights of eight and four bits."""

    name = "triton"
    accepts = QUANTIZED_FEATURES | {Feature.BIAS}

    def __init__(self, traits: DeviceTraits) -> None:
        self._traits = traits

    def assess(self, request: LinearRequest) -> Verdict:
        """Yes, unless weights are quantized in another way."""
        if request.scheme is None:
            return Yes(Tier.GENERIC, "own kernels", max_tokens=_max_rows(request))
        reason = refusal(request.scheme, request.in_features, self._traits)
        if reason:
            return No.because("scheme", reason)
        if request.scheme.activations is not Activations.KEPT:
            return Yes(Tier.GENERIC, "rows and weights in eight bits")
        return Yes(Tier.GENERIC, "weights as they are stored, up to 256 rows")

    def build(self, request: LinearRequest, context: BuildContext) -> LinearImpl:
        """Kernels for the layer's shape; compiled at their first launch."""
        if request.scheme is not None:
            return QuantizedLinear(request, self._traits, context.torch_device)
        return SkinnyLinear(request, self._traits, context.torch_device)
