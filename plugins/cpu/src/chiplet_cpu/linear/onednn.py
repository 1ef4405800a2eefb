"""Linear layers by oneDNN on weights packed once into the order that its kernels read."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from chiplet.api import (
    BuildContext,
    Dtype,
    Feature,
    LinearRequest,
    LinearWeights,
    No,
    Tier,
    Verdict,
    Yes,
)

_NAMES = ("_reorder_linear_weight", "_linear_pointwise")


class PackedWeights(NamedTuple):
    """Weight in oneDNN's own order (opaque), and bias `[out_features]`."""

    weight: Tensor
    bias: Tensor | None


class OneDnnLinear:
    """y = x W^T + b on packed weights."""

    def __init__(self) -> None:
        self._reorder: Callable[[Tensor], Tensor] = torch.ops.mkldnn._reorder_linear_weight
        self._linear: Callable[..., Tensor] = torch.ops.mkldnn._linear_pointwise

    def pack(self, weights: LinearWeights) -> PackedWeights:
        """A packed copy; the weight itself is not kept.

        No hint of the number of rows is given: on AVX512_BF16 the order chosen without one is as
        fast as any, at 1, 8, 64 and 512 rows.
        """
        return PackedWeights(self._reorder(weights.weight), weights.bias)

    def run(self, x: Tensor, packed: PackedWeights) -> Tensor:
        """The product; see `chiplet.api.LinearImpl.run`."""
        return self._linear(x, packed.weight, packed.bias, "none", [], "")


class OneDnnProvider:
    """Serves float32, and bfloat16 where the processor computes in it."""

    name = "onednn"
    accepts = frozenset({Feature.BIAS})

    def assess(self, request: LinearRequest) -> Verdict:
        """Yes if this torch has the operations and the processor the arithmetic."""
        if not torch.backends.mkldnn.is_available():
            return No.because("build", "this torch is built without oneDNN")
        for name in _NAMES:
            if not hasattr(torch.ops.mkldnn, name):
                return No.because("torch", f"torch {torch.__version__} has no mkldnn.{name}")
        if request.dtype is Dtype.FLOAT16:
            return No.because("dtype", "float16; packs float32 and bfloat16")
        if request.dtype is Dtype.BFLOAT16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return No.because("isa", "the processor has no fast bfloat16 (AVX512 or better)")
        return Yes(Tier.VENDOR, "weights packed")

    def build(self, request: LinearRequest, context: BuildContext) -> OneDnnLinear:
        """The packed product."""
        return OneDnnLinear()
