"""Linear layers by the plugin's own kernels, on weights that stay in their checkpoint's coding.

Two providers on the same panels. `native` keeps activations as they are: weights are widened in
registers, and sums are float32. `native-int8` rounds activations to eight bits, in groups or (where
the scheme says so) by token, and multiplies whole numbers, which is several times as fast.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from chiplet.api import (
    Activations,
    BuildContext,
    Dtype,
    Feature,
    LinearRequest,
    LinearWeights,
    No,
    Numerics,
    Tier,
    Verdict,
    Yes,
)
from chiplet_cpu import native
from chiplet_cpu.linear.panels import PANEL, Panels, pack, refusal
from chiplet_cpu.linear.weight_memory import WeightMemory
from chiplet_cpu.ops.native import make_silu_mul

_FEW_ROWS = 2
"""So few are bound by reading panels, which is fastest one after another: the panels of a gate and
of what it is for lie apart. Measured: `benchmarks/cpu_notes.md`."""


class PanelLinear:
    """y = x W^T + b on panels, by one of the kernels."""

    def __init__(self, request: LinearRequest, kernel: Any, memory: WeightMemory) -> None:
        """Take the layer, the kernel that is to multiply, and memory for what is packed.

        Args:
            request: for the layer.
            kernel: `linear` or `int8_linear`.
            memory: shared with other layers.
        """
        self._run = kernel
        self._memory = memory
        self._code = native.DTYPE_CODES[request.dtype]
        self._dtype: torch.dtype = getattr(torch, request.dtype)
        self._in_features = request.in_features
        self._out_features = request.out_features
        self._silu_mul = make_silu_mul(self._code)

    def pack(self, weights: LinearWeights) -> Panels:
        """A packed copy; see `chiplet.api.LinearImpl.pack`."""
        return pack(weights, self._memory)

    def run(self, x: Tensor, packed: Panels) -> Tensor:
        """The product; see `chiplet.api.LinearImpl.run`."""
        return self._multiply(x, packed, self._out_features, 0)

    def run_silu_mul(self, x: Tensor, packed: Panels) -> Tensor:
        """The product with its gate; see `chiplet.api.GatedLinear.run_silu_mul`."""
        width = self._out_features // 2
        is_mixed = width % PANEL != 0  # a panel holds gates and others
        if is_mixed or x.shape[0] <= _FEW_ROWS:
            return self._silu_mul(self.run(x, packed))
        return self._multiply(x, packed, width, 1)

    def _multiply(self, x: Tensor, packed: Panels, width: int, is_gated: int) -> Tensor:
        """Shapes: returns `[rows, width]`."""
        rows = x.shape[0]
        out = torch.empty((rows, width), dtype=x.dtype)
        self._run(
            self._code,
            x.data_ptr(),
            x.stride(0),
            rows,
            packed.coding,
            packed.address,
            packed.panel_bytes,
            self._in_features,
            width,
            packed.bias_address,
            is_gated,
            out.data_ptr(),
        )
        return out

    def rows(self, row_ids: Tensor, packed: Panels) -> Tensor:
        """Rows of the weight; see `chiplet.api.RowSource.rows`."""
        count = row_ids.shape[0]
        out = torch.empty((count, self._in_features), dtype=self._dtype)
        native.library.panel_rows(
            self._code,
            row_ids.data_ptr(),
            count,
            packed.coding,
            packed.address,
            packed.panel_bytes,
            self._in_features,
            out.data_ptr(),
        )
        return out


_FASTER_THAN_ONEDNN = {(Dtype.FLOAT32, "avx2"), (Dtype.BFLOAT16, "avx512_bf16")}
"""Measured: `benchmarks/cpu_notes.md`."""


def _plain_score(dtype: Dtype) -> int:
    is_faster = (dtype, native.instruction_set()) in _FASTER_THAN_ONEDNN
    return Tier.VENDOR + 10 if is_faster else Tier.VENDOR - 10


_CODED = frozenset(
    {
        Feature.BIAS,
        Feature.BLOCK_WEIGHTS,
        Feature.INT4_WEIGHTS,
        Feature.ZERO_POINTS,
        Feature.WEIGHT_ROWS,
    }
)


class NativeLinearProvider:
    """Serves plain weights, GGUF's blocks and groups of int4; activations are kept."""

    name = "native"
    accepts = _CODED

    def __init__(self, memory: WeightMemory | None = None) -> None:
        """Take memory for packed weights, which providers may share."""
        self._memory = memory or WeightMemory()

    def assess(self, request: LinearRequest) -> Verdict:
        """Yes where the kernels could be built and know the coding."""
        if not native.is_available():
            return No.because("build", native.explanation(), native.remedy())
        if request.scheme is None:
            return Yes(_plain_score(request.dtype), f"plain panels, {native.instruction_set()}")
        note = f"{request.scheme} in panels, {native.instruction_set()}"
        return refusal(request, is_rounded=False) or Yes(Tier.VENDOR, note)

    def build(self, request: LinearRequest, context: BuildContext) -> PanelLinear:
        """The product on panels."""
        return PanelLinear(request, native.library.linear, self._memory)


class NativeInt8Provider:
    """Serves GGUF's blocks, groups of int4, and int8; activations are rounded to eight bits."""

    name = "native-int8"
    accepts = _CODED | {Feature.INT8_WEIGHTS, Feature.DYNAMIC_ACTIVATIONS}

    def __init__(self, memory: WeightMemory | None = None) -> None:
        """Take memory for packed weights, which providers may share."""
        self._memory = memory or WeightMemory()

    def assess(self, request: LinearRequest) -> Verdict:
        """Yes where the kernels could be built and know the coding."""
        if not native.is_available():
            return No.because("build", native.explanation(), native.remedy())
        refused = refusal(request, is_rounded=True)
        if refused is not None:
            return refused
        assert request.scheme is not None
        # Portable code has no instruction for it, and is slower than with floating-point numbers.
        is_slow = native.instruction_set() == "portable"
        is_kept = request.scheme.activations is Activations.KEPT
        return Yes(
            Tier.VENDOR - 20 if is_slow else Tier.VENDOR + 20,
            f"{request.scheme} in panels, {native.instruction_set()}",
            numerics=Numerics.INT8_ACTIVATIONS if is_kept else Numerics.EXACT,
        )

    def build(self, request: LinearRequest, context: BuildContext) -> PanelLinear:
        """The product of whole numbers."""
        return PanelLinear(request, native.library.int8_linear, self._memory)
