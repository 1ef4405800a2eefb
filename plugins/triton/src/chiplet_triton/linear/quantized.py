"""Linear layers whose weights have eight or four bits, and whose inputs stay as they are."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from triton import cdiv, next_power_of_2

from chiplet.api import (
    Activations,
    Coding,
    Granularity,
    LinearRequest,
    LinearWeights,
    WeightScheme,
)
from chiplet_triton.device import DOT_PRECISION, DeviceTraits, launch_options
from chiplet_triton.kernels.quantized_linear import (
    dequantize_kernel,
    fp8_gemv_kernel,
    int4_gemv_kernel,
    quantized_skinny_kernel,
)

_MAX_SKINNY_ROWS = 256
"""Above, weights are made plain and the product is torch's."""

_MAX_BLOCK_ROWS = 64
_MAX_GEMV_K = 32768  # the loop over K is unrolled
_GROUPS = (32, 64, 128)
_MAX_SPLITS = 8
_FEW_ROWS = 32


class QuantizedWeights(NamedTuple):
    """Weights as the kernels read them.

    Attributes:
        weight: `[N, K] float8_e4m3fn`, or `[N, K / 2] uint8` in the order of the kernels.
        scales: `[N]` or `[N, K / GROUP] float32`.
        zeros: `[N, K / GROUP] uint8` of four-bit weights, else the scales again.
        bias: `[N]`.
    """

    weight: Tensor
    scales: Tensor
    zeros: Tensor
    bias: Tensor | None


class GemvTiling(NamedTuple):
    """How the kernels of one row are cut.

    Attributes:
        block_n: output features per program.
        block_chunks: chunks of 16 bytes per step.
    """

    block_n: int
    block_chunks: int
    num_warps: int


def refusal(scheme: WeightScheme, traits: DeviceTraits, in_features: int) -> str:
    """Why the scheme is not served, or an empty text."""
    if scheme.activations is not Activations.KEPT:
        return f"activations {scheme.activations}; served: {Activations.KEPT}"
    match scheme.coding, scheme.granularity:
        case Coding.FP8_E4M3, Granularity.CHANNEL:
            if not traits.has_fp8:
                return "this device has no numbers of the kind E4M3"
            return "" if in_features % 16 == 0 else f"{in_features} inputs; served: multiples of 16"
        case Coding.INT4, Granularity.GROUP:
            served = ", ".join(map(str, _GROUPS))
            fits = scheme.group_size in _GROUPS
            return "" if fits else f"groups of {scheme.group_size}; served: {served}"
        case _:
            return f"{scheme}; served: fp8_e4m3 per channel, int4 in groups"


class QuantizedLinear:
    """y = x W^T + b, near the speed of reading W for up to 64 rows."""

    def __init__(self, request: LinearRequest, traits: DeviceTraits, device: torch.device) -> None:
        assert request.scheme is not None
        self._k, self._n = request.in_features, request.out_features
        self._scheme = request.scheme
        self._is_int4 = request.scheme.coding is Coding.INT4
        self._traits = traits
        self._launch = launch_options(traits)
        self._gemv_tiling = GemvTiling(4, 64, 2) if self._is_int4 else GemvTiling(1, 128, 4)
        self._block_n = 64 if self._n >= 64 else max(16, next_power_of_2(self._n))
        self._block_k = request.scheme.group_size if self._is_int4 else 128
        if request.dtype.size_bytes == 4 and not self._is_int4:
            self._block_k = 64
        tiles = cdiv(self._n, self._block_n)
        self._splits = {rows: self._num_splits(tiles, rows) for rows in (16, 32, _MAX_BLOCK_ROWS)}
        floats = max(
            tiles * cdiv(_MAX_SKINNY_ROWS, _MAX_BLOCK_ROWS) * splits * self._block_n * rows
            for rows, splits in self._splits.items()
        )
        self._stages = {rows: self._num_stages(rows, request) for rows in self._splits}
        tiles *= cdiv(_MAX_SKINNY_ROWS, _MAX_BLOCK_ROWS)
        # Shared by all layers of this request: they run one after another on one stream.
        self._partial = torch.empty(floats, dtype=torch.float32, device=device)
        self._arrivals = torch.zeros(tiles, dtype=torch.int32, device=device)

    def _num_splits(self, tiles: int, rows: int) -> int:
        """A power of two: many programs for few rows, which have little to do besides loading."""
        per_core = 8 if rows <= _FEW_ROWS else 3
        most = min(_MAX_SPLITS, self._k // (4 * self._block_k))
        splits = 1
        while 2 * splits <= most and 2 * splits * tiles <= per_core * self._traits.num_cores:
            splits *= 2
        return splits

    def _num_stages(self, rows: int, request: LinearRequest) -> int:
        """As many loads on their way as shared memory holds, and as were of use."""
        weight_bytes = self._block_n * self._block_k // (2 if self._is_int4 else 1)
        stage_bytes = weight_bytes + rows * self._block_k * request.dtype.size_bytes
        wanted = 3 if rows <= _FEW_ROWS else 5
        return max(1, min(wanted, self._traits.shared_bytes // stage_bytes))

    def pack(self, weights: LinearWeights) -> QuantizedWeights:
        """Orders four-bit weights by chunks, and gives each group a zero point."""
        scales, zeros = weights.scales, weights.zero_points
        assert scales is not None
        if not self._is_int4:
            return QuantizedWeights(weights.weight, scales, scales, weights.bias)
        if zeros is None:
            zeros = torch.full(scales.shape, 8, dtype=torch.uint8, device=scales.device)
        return QuantizedWeights(_by_chunks(weights.weight), scales, zeros, weights.bias)

    def run(self, x: Tensor, packed: QuantizedWeights) -> Tensor:
        """The product; see `chiplet.api.LinearImpl.run`."""
        num_rows = x.shape[0]
        if num_rows > _MAX_SKINNY_ROWS or num_rows == 0:
            return F.linear(x, self._plain(packed, x.dtype), packed.bias)
        y = torch.empty(num_rows, self._n, dtype=x.dtype, device=x.device)
        if num_rows == 1 and self._k <= _MAX_GEMV_K:
            self._gemv(x, packed, y)
        else:
            self._skinny(x, packed, y)
        return y

    def _plain(self, packed: QuantizedWeights, dtype: torch.dtype) -> Tensor:
        plain = torch.empty(self._n, self._k, dtype=dtype, device=packed.weight.device)
        row_bytes, block = packed.weight.shape[1], 1024
        dequantize_kernel[(self._n, cdiv(row_bytes, block))](
            packed.weight,
            packed.scales,
            packed.zeros,
            plain,
            K=self._k,
            GROUP=self._scheme.group_size,
            BLOCK=block,
            IS_INT4=self._is_int4,
            num_warps=4,
        )
        return plain

    def _gemv(self, x: Tensor, packed: QuantizedWeights, y: Tensor) -> None:
        tiling = self._gemv_tiling
        grid = (cdiv(self._n, tiling.block_n),)
        constants = {
            "K": self._k,
            "BLOCK_N": tiling.block_n,
            "BLOCK_CHUNKS": tiling.block_chunks,
            "HAS_BIAS": packed.bias is not None,
            "OVERLAP": self._traits.can_overlap,
            "num_warps": tiling.num_warps,
            **self._launch,
        }
        weight, scales, zeros, bias = packed
        if self._is_int4:
            group = self._scheme.group_size
            int4_gemv_kernel[grid](
                x,
                weight,
                scales,
                zeros,
                bias,
                y,
                self._n,
                GROUP=group,
                **constants,
            )
        else:
            fp8_gemv_kernel[grid](x, weight, scales, bias, y, self._n, **constants)

    def _skinny(self, x: Tensor, packed: QuantizedWeights, y: Tensor) -> None:
        num_rows = x.shape[0]
        block_m = min(_MAX_BLOCK_ROWS, max(16, next_power_of_2(num_rows)))
        splits = self._splits[block_m]
        grid = (cdiv(self._n, self._block_n), splits, cdiv(num_rows, block_m))
        quantized_skinny_kernel[grid](
            x,
            packed.weight,
            packed.scales,
            packed.zeros,
            packed.bias,
            y,
            self._partial,
            self._arrivals,
            num_rows,
            self._n,
            x.stride(0),
            K=self._k,
            GROUP=self._scheme.group_size,
            BLOCK_M=block_m,
            BLOCK_N=self._block_n,
            BLOCK_K=self._block_k,
            SPLITS=splits,
            IS_INT4=self._is_int4,
            HAS_BIAS=packed.bias is not None,
            PRECISION=DOT_PRECISION,
            OVERLAP=self._traits.can_overlap,
            num_warps=4,
            num_stages=self._stages[block_m],
            **self._launch,
        )


def _by_chunks(codes: Tensor) -> Tensor:
    """Halves of bytes put where the kernels look for them.

    Shapes: `[N, K / 2] uint8`, element 2i in the low half of byte i; returns the same shape.
    """
    elements = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(1).unflatten(1, (-1, 2, 16))
    return (elements[:, :, 0] | (elements[:, :, 1] << 4)).flatten(1).contiguous()
