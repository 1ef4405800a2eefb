"""Linear layers whose weights have four bits and whose inputs stay as they are."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from chiplet.api import (
    Activations,
    BuildContext,
    Coding,
    Dtype,
    Feature,
    Granularity,
    LinearRequest,
    LinearWeights,
    No,
    Tier,
    Verdict,
    Yes,
)
from chiplet_nvidia.cuda_kernels import CudaKernel, has_compiler
from chiplet_nvidia.linear.int4_layout import TILE, UNIT, pack_codes, pack_scales
from chiplet_nvidia.linear.int4_wgmma import CAPABILITY, Int4Wgmma, WideTiling
from chiplet_nvidia.linear.tiles import workspace

_SOURCE = "int4_linear.cu"
_GROUPS = (32, 64, 128)
_FIRST_CAPABILITY = (8, 0)
_MAX_ROWS = 256
"""Above, weights are made plain and the product is cuBLAS's."""

WIDE_TILINGS = (WideTiling(32, 3), WideTiling(64, 3), WideTiling(128, 2))
"""Of the kernel for many rows; the last one takes more rows than its own several times. The best of
a sweep on an H200, see benchmarks/nvidia_notes.md."""

_MANY_WEIGHTS = 1 << 25
"""From here on the kernel for many rows is worth its launches above 16 rows, below it above 32."""


class PackedInt4(NamedTuple):
    """Weights as the kernel reads them.

    Attributes:
        weight: `[N / 16, K / 64, 32, 16] uint8`.
        scales: `[N / 16, K / GROUP, 16] int32`, with zero points in their lowest bits.
        bias: `[N]`.
    """

    weight: Tensor
    scales: Tensor
    bias: Tensor | None


@dataclass(frozen=True, slots=True)
class Tiling:
    """How the kernel is cut.

    Attributes:
        feature_tiles: of 16 output features, per block of threads.
        row_tiles: of 8 rows, likewise.
        warps: share the inputs.
        depth: loads of 128 inputs on their way to each warp.
    """

    feature_tiles: int
    row_tiles: int
    warps: int
    depth: int

    @property
    def rows(self) -> int:
        """Rows that it serves."""
        return 8 * self.row_tiles


_THREADS = 256
_MAX_GATED_ROWS = 16
_ALIGNMENT_BYTES = 16  # threads load so much at a time

_NARROW = 6144
"""Fewer outputs leave cores idle if a block takes two tiles of them."""


def tilings(out_features: int) -> tuple[Tiling, ...]:
    """From few rows to many; more than the last one serves take it several times.

    The best of a sweep on an H100, see benchmarks/nvidia_notes.md.
    """
    few = (Tiling(1, 1, 8, 4), Tiling(1, 2, 8, 2))
    if out_features % (2 * TILE):
        return (*few, Tiling(1, 4, 8, 2))
    if out_features < _NARROW:
        return (*few, Tiling(2, 4, 8, 1), Tiling(1, 4, 8, 2))
    return (*few, Tiling(2, 4, 8, 1), Tiling(2, 8, 4, 1))


def gated_tiling(rows: int) -> Tiling:
    """For so many rows, at most 16: a block has a tile of gates and the one that belongs to it."""
    return Tiling(2, 1, 8, 2) if rows <= 8 else Tiling(2, 2, 8, 1)


class Int4Linear:
    """y = x W^T + b, near the speed of reading W for a few rows."""

    def __init__(
        self, request: LinearRequest, capability: tuple[int, int], device: torch.device
    ) -> None:
        assert request.scheme is not None
        self._k, self._n = request.in_features, request.out_features
        self._capability = capability
        self._defines = {
            "IS_BFLOAT16": int(request.dtype is Dtype.BFLOAT16),
            "GROUP": request.scheme.group_size,
        }
        self._tilings = tilings(self._n)
        self._kernels: dict[tuple[str, Tiling, bool], CudaKernel] = {}
        self._dequantize = self._kernel("int4_dequantize", self._tilings[0], 64)
        self._order = self._kernel("int4_order_inputs", self._tilings[0], _THREADS)
        self._silu_mul = self._kernel("int4_silu_mul", self._tilings[0], _THREADS)
        self._wide: list[tuple[WideTiling, Int4Wgmma]] = []
        self._few_rows = _MAX_ROWS
        if capability == CAPABILITY:
            self._few_rows = 16 if self._n * self._k >= _MANY_WEIGHTS else 32
            dtype = torch.bfloat16 if request.dtype is Dtype.BFLOAT16 else torch.float16
            size = request.scheme.group_size
            self._wide = [(each, Int4Wgmma(each, dtype, size)) for each in WIDE_TILINGS]
            for _, product in self._wide:
                product.kernel.compile_soon()
            workspace(device)  # now, since it must be there before a step is recorded

    def _kernel(
        self, name: str, tiling: Tiling, threads: int, *, is_gated: bool = False
    ) -> CudaKernel:
        """A kernel of the source, made once."""
        key = (name, tiling, is_gated)
        if key not in self._kernels:
            cut = {
                "FEATURE_TILES": tiling.feature_tiles,
                "ROW_TILES": tiling.row_tiles,
                "WARPS": tiling.warps,
                "DEPTH": tiling.depth,
                "IS_GATED": int(is_gated),
            }
            self._kernels[key] = CudaKernel(
                _SOURCE,
                name,
                capability=self._capability,
                defines=self._defines | cut,
                threads=threads,
            )
        return self._kernels[key]

    def pack(self, weights: LinearWeights) -> PackedInt4:
        """Weights in the order of the kernel."""
        assert weights.scales is not None
        return PackedInt4(
            pack_codes(weights.weight),
            pack_scales(weights.scales, weights.zero_points),
            weights.bias,
        )

    def run(self, x: Tensor, packed: PackedInt4) -> Tensor:
        """The product; see `chiplet.api.LinearImpl.run`."""
        num_rows = x.shape[0]
        if num_rows > _MAX_ROWS or num_rows == 0:
            return F.linear(x, self._plain(packed, x.dtype), packed.bias)
        x = _aligned(x)
        if num_rows > self._few_rows:
            product = next((p for cut, p in self._wide if num_rows <= cut.rows), self._wide[-1][1])
            return product.run(self._ordered(x), packed.weight, packed.scales, packed.bias)
        cuts = self._tilings
        tiling = next((each for each in cuts if num_rows <= each.rows), cuts[-1])
        return self._few(x, packed, tiling)

    def run_silu_mul(self, x: Tensor, packed: PackedInt4) -> Tensor:
        """The product with its gate; see `chiplet.api.GatedLinear.run_silu_mul`."""
        num_rows, width = x.shape[0], self._n // 2
        if 0 < num_rows <= _MAX_GATED_ROWS and self._n % (2 * TILE) == 0:
            return self._few(_aligned(x), packed, gated_tiling(num_rows), is_gated=True)
        both = self.run(x, packed)
        y = torch.empty(num_rows, width, dtype=x.dtype, device=x.device)
        if num_rows:
            grid = (-(-width // (2 * _THREADS)), num_rows)
            self._silu_mul.launch(grid, (both, y, ctypes.c_int(width)))
        return y

    def _few(
        self, x: Tensor, packed: PackedInt4, tiling: Tiling, *, is_gated: bool = False
    ) -> Tensor:
        """A few rows, by the kernel whose blocks have them all."""
        num_rows, width = x.shape[0], self._n // (1 + is_gated)
        y = torch.empty(num_rows, width, dtype=x.dtype, device=x.device)
        grid = (self._n // (TILE * tiling.feature_tiles), -(-num_rows // tiling.rows))
        sizes = map(ctypes.c_int, (num_rows, self._k // UNIT, self._n))
        self._kernel("int4_linear", tiling, 32 * tiling.warps, is_gated=is_gated).launch(
            grid,
            (
                x,
                packed.weight,
                packed.scales,
                packed.bias,
                y,
                *sizes,
                ctypes.c_longlong(x.stride(0)),
            ),
        )
        return y

    def _ordered(self, x: Tensor) -> Tensor:
        """Puts inputs into the order in which the kernel for many rows multiplies."""
        num_rows, num_eights = x.shape[0], self._k // 8
        ordered = torch.empty(num_rows, self._k, dtype=x.dtype, device=x.device)
        self._order.launch(
            (-(-num_eights // _THREADS), num_rows),
            (x, ordered, ctypes.c_int(num_eights), ctypes.c_longlong(x.stride(0))),
        )
        return ordered

    def _plain(self, packed: PackedInt4, dtype: torch.dtype) -> Tensor:
        plain = torch.empty(self._n, self._k, dtype=dtype, device=packed.weight.device)
        grid = (self._k // UNIT, self._n // TILE)
        self._dequantize.launch(grid, (packed.weight, packed.scales, plain))
        return plain


def _aligned(x: Tensor) -> Tensor:
    """Itself, or a copy if threads cannot load its rows as they lie."""
    if x.data_ptr() % _ALIGNMENT_BYTES or x.stride(0) * x.element_size() % _ALIGNMENT_BYTES:
        return x.clone(memory_format=torch.contiguous_format)
    return x


class Int4Provider:
    """Serves weights of four bits in groups, in 16-bit models, on GPUs since Ampere."""

    name = "int4"
    accepts = frozenset({Feature.BIAS, Feature.INT4_WEIGHTS, Feature.ZERO_POINTS})

    def __init__(self, capability: tuple[int, int]) -> None:
        self._capability = capability

    def assess(self, request: LinearRequest) -> Verdict:
        """Yes for whole tiles."""
        reason = self._refusal(request)
        if reason is not None:
            return No.because(*reason)
        return Yes(Tier.TUNED, "matrix units on weights as they lie, up to 256 rows")

    def _refusal(self, request: LinearRequest) -> tuple[str, str] | None:
        scheme = request.scheme
        if scheme is None or (scheme.coding, scheme.granularity, scheme.activations) != (
            Coding.INT4,
            Granularity.GROUP,
            Activations.KEPT,
        ):
            return "scheme", f"weights are {scheme or 'plain'}; served: int4 in groups"
        if scheme.group_size not in _GROUPS:
            return "scheme", f"groups of {scheme.group_size}; served: {_GROUPS}"
        if request.dtype is Dtype.FLOAT32:
            return "dtype", "float32; served: bfloat16, float16"
        if request.in_features % UNIT or request.out_features % TILE:
            sizes = f"{request.in_features} inputs, {request.out_features} outputs"
            return "shape", f"{sizes}; served: multiples of {UNIT} and {TILE}"
        if self._capability < _FIRST_CAPABILITY:
            return "device", f"capability {self._capability}; served: since {_FIRST_CAPABILITY}"
        return None if has_compiler() else ("device", "NVRTC is not installed")

    def build(self, request: LinearRequest, context: BuildContext) -> Int4Linear:
        """Kernels for the layer's shape; compiled at their first launch."""
        return Int4Linear(request, self._capability, context.torch_device)
