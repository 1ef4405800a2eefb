"""Linear layers by the plugin's own kernels, on weights that stay in their checkpoint's coding.

Two providers on the same panels. `native` keeps activations as they are: weights are widened in
registers, and sums are float32. `native-int8` rounds activations to eight bits, in groups or (where
the scheme says so) by token, and multiplies whole numbers, which is several times as fast.
"""

from __future__ import annotations

from chiplet.api import (
    Activations,
    BuildContext,
    Dtype,
    Feature,
    LinearRequest,
    No,
    Numerics,
    Stretch,
    StretchRequest,
    Tier,
    Verdict,
    Yes,
)
from chiplet_cpu import native
from chiplet_cpu.linear.panel_linear import PanelLinear
from chiplet_cpu.linear.panels import refusal
from chiplet_cpu.linear.stretch import panel_stretch
from chiplet_cpu.linear.weight_memory import WeightMemory

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
        return PanelLinear(request, self._memory, is_rounded=False)

    def stretch(self, request: StretchRequest, context: BuildContext) -> Stretch | None:
        """Few tokens from one attention to the next, where no layer rounds activations."""
        return panel_stretch(request, is_rounded=False)


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
        return PanelLinear(request, self._memory, is_rounded=True)

    def stretch(self, request: StretchRequest, context: BuildContext) -> Stretch | None:
        """Few tokens from one attention to the next, where a layer rounds activations."""
        return panel_stretch(request, is_rounded=True)
