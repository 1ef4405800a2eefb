"""Linear layers whose weights have eight or four bits; inputs are kept, or coded too."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from triton import cdiv, next_power_of_2

from chiplet.api import Coding, Granularity, LinearRequest, LinearWeights
from chiplet_triton.device import DOT_PRECISION, DeviceTraits, launch_options
from chiplet_triton.kernels.eight_bits import (
    eight_bit_gemv_kernel,
    plain_eight_bits_kernel,
)
from chiplet_triton.kernels.four_bits import four_bit_gemv_kernel, plain_four_bits_kernel
from chiplet_triton.kernels.quantized_linear import quantized_kernel
from chiplet_triton.linear.rows import CodedRows
from chiplet_triton.linear.schemes import QuantizedWeights, coding_of, packed
from chiplet_triton.ops.elementwise import ElementwiseOps

_MAX_SKINNY_ROWS = 256
"""Above, weights are made plain and the product is torch's, unless inputs are coded too."""

_MAX_BLOCK_ROWS = 64
_MAX_GEMV_K = 32768  # the loop over K is unrolled
_MAX_SPLITS = 8
_FEW_ROWS, _WIDE = 32, 16384


class Tiling(NamedTuple):
    """How `quantized_kernel` is cut.

    Attributes:
        block_m, block_n, block_k: rows, outputs and inputs per step.
        splits: programs that share K.
    """

    block_m: int
    block_n: int
    block_k: int
    splits: int
    num_warps: int
    num_stages: int


class QuantizedLinear:
    """y = x W^T + b, near the speed of reading W for up to 64 rows."""

    def __init__(self, request: LinearRequest, traits: DeviceTraits, device: torch.device) -> None:
        scheme = request.scheme
        assert scheme is not None
        self._k, self._n = request.in_features, request.out_features
        self._traits = traits
        self._launch = launch_options(traits)
        self._silu_mul = ElementwiseOps(traits).silu_mul
        self._scheme = scheme
        self._coding = coding_of(scheme)
        self._group = scheme.group_size
        self._rows = CodedRows.of(scheme, traits)
        self._is_integer = scheme.coding is Coding.INT8
        # Two numbers in int8 are multiplied by matrix units sooner than they become float32.
        self._has_gemv = self._rows is None or not self._is_integer
        self._is_fp4 = self._coding == "fp4"
        # Outputs of a program, chunks of its steps, warps.
        cuts = {"eight": (2, 128, 4), "fp4": (8, 64, 4), "int4": (4, 64, 2)}
        self._gemv_cut = cuts[self._coding]
        self._x_bytes = 1 if self._rows is not None else request.dtype.size_bytes
        self._tilings = {rows: self._tiling(rows) for rows in (16, 32, _MAX_BLOCK_ROWS)}
        self._large = self._large_tiling()
        blocks = cdiv(_MAX_SKINNY_ROWS, _MAX_BLOCK_ROWS)
        tiles = blocks * max(cdiv(self._n, each.block_n) for each in self._tilings.values())
        floats = blocks * max(
            cdiv(self._n, each.block_n) * each.splits * each.block_n * each.block_m
            for each in self._tilings.values()
        )
        # Shared by all layers of this request: they run one after another on one stream.
        self._partial = torch.empty(floats, dtype=torch.float32, device=device)
        self._arrivals = torch.zeros(tiles, dtype=torch.int32, device=device)

    def _tiling(self, rows: int) -> Tiling:
        """For few rows: many programs, which have little to do besides loading.

        Source: `benchmarks/nvidia_notes.md`, quantized products on an H200.
        """
        few, is_eight = rows <= _FEW_ROWS, self._coding == "eight"
        block_n = 64 if self._n >= 64 else max(16, next_power_of_2(self._n))
        # More rows of few bits: what is unpacked once is used by all of them.
        is_wide = not (few or is_eight) and self._n >= _WIDE
        block_n, num_warps = (128, 8) if is_wide else (block_n, 4)
        block_k = self._group if self._coding == "int4" else 128
        if is_eight and not self._group and self._x_bytes == 4:
            block_k = 64
        elif is_eight and not self._group and few and self._rows is not None:
            block_k = 256
        stage_bytes = block_n * block_k // (1 if is_eight else 2) + rows * block_k * self._x_bytes
        wanted = 5 if not few else 4 if self._rows is not None else 2 if self._is_fp4 else 3
        stages = max(1, min(wanted, self._traits.shared_bytes // stage_bytes))
        splits = self._num_splits(cdiv(self._n, block_n), rows, block_k)
        return Tiling(rows, block_n, block_k, splits, num_warps, stages)

    def _num_splits(self, tiles: int, rows: int, block_k: int) -> int:
        """A power of two."""
        per_core = 3 if rows > _FEW_ROWS else 8 if block_k <= 128 else 4
        most = min(_MAX_SPLITS, self._k // (4 * block_k))
        splits = 1
        while 2 * splits <= most and 2 * splits * tiles <= per_core * self._traits.num_cores:
            splits *= 2
        return splits

    def _large_tiling(self) -> Tiling:
        """For many rows whose inputs are coded too.

        Sums of E4M3 stand beside the total until they are added to it: they take more registers.
        """
        in_place = self._is_integer and self._traits.reads_operands_in_place
        warps = 8 if self._traits.is_cuda and not in_place else 4
        stages = 3 if self._is_integer else 4
        most = self._traits.shared_bytes // (2 * 128 * 128)
        return Tiling(128, 128, 128, 1, warps, max(1, min(stages, most)))

    def pack(self, weights: LinearWeights) -> QuantizedWeights:
        """See `chiplet_triton.linear.schemes.packed`."""
        return packed(weights)

    def stored(self, packed: QuantizedWeights) -> LinearWeights | None:
        """See `chiplet.api.StoredLinear`; of eight bits with a scale for each output."""
        if self._coding != "eight" or self._scheme.granularity is not Granularity.CHANNEL:
            return None
        return LinearWeights(
            scheme=self._scheme, weight=packed.weight, scales=packed.scales, bias=packed.bias
        )

    def run(self, x: Tensor, packed: QuantizedWeights) -> Tensor:
        """The product; see `chiplet.api.LinearImpl.run`."""
        return self._product(x, packed, is_gated=False)

    def run_silu_mul(self, x: Tensor, packed: QuantizedWeights) -> Tensor:
        """The product with its gate; see `chiplet.api.GatedLinear.run_silu_mul`."""
        return self._product(x, packed, is_gated=True)

    def _product(self, x: Tensor, packed: QuantizedWeights, *, is_gated: bool) -> Tensor:
        num_rows = x.shape[0]
        if num_rows > _MAX_SKINNY_ROWS and (self._rows is None or self._group):
            # Products of E4M3 in blocks spend more time on scales than on products.
            rows = x if self._rows is None else self._rows.rounded(x)
            y = F.linear(rows, self._plain(packed, x.dtype), packed.bias)
            return self._silu_mul(y) if is_gated else y
        y = torch.empty(num_rows, self._n // (1 + is_gated), dtype=x.dtype, device=x.device)
        if num_rows == 0:
            return y
        codes, scales = (
            (x, packed.scales) if self._rows is None else self._rows.coded(x, packed.beside)
        )
        if num_rows == 1 and self._k <= _MAX_GEMV_K and self._has_gemv:
            self._gemv(codes, scales, packed, y, is_gated=is_gated)
        else:
            self._matrix(codes, scales, packed, y, is_gated=is_gated)
        return y

    def _plain(self, packed: QuantizedWeights, dtype: torch.dtype) -> Tensor:
        plain = torch.empty(self._n, self._k, dtype=dtype, device=packed.weight.device)
        row_bytes, block = packed.weight.shape[1], 1024
        grid, constants = (self._n, cdiv(row_bytes, block)), {"K": self._k, "GROUP": self._group}
        weight, scales, beside, _ = packed
        if self._coding == "eight":
            plain_eight_bits_kernel[grid](weight, scales, plain, BLOCK=block, **constants)
        else:
            plain_four_bits_kernel[grid](
                weight, scales, beside, plain, BLOCK=block, IS_FP4=self._is_fp4, **constants
            )
        return plain

    def _gemv(
        self, x: Tensor, x_scales: Tensor, packed: QuantizedWeights, y: Tensor, *, is_gated: bool
    ) -> None:
        block_n, block_chunks, num_warps = self._gemv_cut
        constants: dict[str, Any] = {
            "K": self._k,
            "GROUP": self._group,
            "BLOCK_N": block_n,
            "BLOCK_CHUNKS": block_chunks,
            "HAS_BIAS": packed.bias is not None,
            "IS_GATED": is_gated,
            "OVERLAP": self._traits.can_overlap,
            "num_warps": num_warps,
            **self._launch,
        }
        weight, scales, beside, bias = packed
        grid = (cdiv(self._n, block_n),)
        if self._coding == "eight":
            eight_bit_gemv_kernel[grid](
                x,
                x_scales,
                weight,
                scales,
                bias,
                y,
                self._n,
                IS_CODED=self._rows is not None,
                **constants,
            )
        else:
            four_bit_gemv_kernel[grid](
                x, weight, scales, beside, bias, y, self._n, IS_FP4=self._is_fp4, **constants
            )

    def _matrix(
        self, x: Tensor, x_scales: Tensor, packed: QuantizedWeights, y: Tensor, *, is_gated: bool
    ) -> None:
        num_rows = x.shape[0]
        is_large = num_rows > _MAX_SKINNY_ROWS
        rows = min(_MAX_BLOCK_ROWS, max(16, next_power_of_2(num_rows)))
        tiling = self._large if is_large else self._tilings[rows]
        tiles, blocks = cdiv(self._n, tiling.block_n), cdiv(num_rows, tiling.block_m)
        grid = (tiles * blocks, 1, 1) if is_large else (tiles, tiling.splits, blocks)
        quantized_kernel[grid](
            x,
            x_scales,
            packed.weight,
            packed.scales,
            packed.beside,
            packed.bias,
            y,
            self._partial,
            self._arrivals,
            num_rows,
            self._n,
            x.stride(0),
            K=self._k,
            GROUP=self._group,
            BLOCK_M=tiling.block_m,
            BLOCK_N=tiling.block_n,
            BLOCK_K=tiling.block_k,
            SPLITS=tiling.splits,
            CODING=self._coding,
            IS_CODED=self._rows is not None,
            HAS_MANY_BLOCKS=is_large,
            HAS_BIAS=packed.bias is not None,
            IS_GATED=is_gated,
            PRECISION=DOT_PRECISION,
            OVERLAP=self._traits.can_overlap,
            num_warps=tiling.num_warps,
            num_stages=tiling.num_stages,
            **self._launch,
        )
