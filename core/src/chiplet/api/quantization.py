"""Quantized weights: how they are coded, and the tensors in which they travel.

A `WeightScheme` says what the numbers of a weight mean, whichever checkpoint they come from. A
linear provider says which schemes it serves, and packs `LinearWeights` into its own form.

**Canonical tensors.** `LinearWeights` holds a weight of N output and K input features in the form
below, whichever checkpoint it comes from. Legend: q the stored number, s its scale, z its zero
point, G the scheme's `group_size`, w the weight's value. All tensors are contiguous.

| coding | `weight` | value |
|---|---|---|
| none (`scheme` is None) | `[N, K]` in the request's dtype | w = weight |
| `int8` | `[N, K] int8` | w = s * (q - z); z = 0 without zero points |
| `int4` | `[N, K / 2] uint8`, element 2i in the low half of byte i | w = s * (q - z), q in 0..15; \
z = 8 without zero points |
| `fp8_e4m3` | `[N, K] float8_e4m3fn` | w = s * q |
| `mxfp4` | `[N, K / 2] uint8`, halves as in int4, each E2M1 | w = 2^(s - 127) * q, G = 32 |
| `nvfp4` | `[N, K / 2] uint8`, halves as in int4, each E2M1 | w = global * s * q, G = 16 |
| `q4_0` ... `q6_k` | `[N, K / E * B] uint8`: blocks of E elements in B bytes | as in GGUF |

`scales` are `[1]`, `[N]`, `[N, K / G]` or `[ceil(N / G), ceil(K / G)]` by granularity, float32;
of mxfp4 `[N, K / 32] uint8` (E8M0), of nvfp4 `[N, K / 16] float8_e4m3fn`; none for GGUF's blocks.
`zero_points` are `[N, K / G] uint8` for int4 (0..16) and `[N, K / G] int8` for int8; `[N]` where
scales are `[N]`. `global_scales` are `[N] float32`, of nvfp4 only. `input_scale` is `[1] float32`,
of static activations only.

E2M1 is sign (high bit), two bits of exponent, one of mantissa: 0, 0.5, 1, 1.5, 2, 3, 4, 6.

**Activations.** A scheme may quantise them: x / a is rounded to the nearest even integer, clamped
to -127..127 (int8), or clamped to -448..448 and rounded to E4M3 (fp8); a is float32, either
`input_scale` or the largest magnitude of a token (or of G elements of it) divided by 127 or 448,
and 1 where that is 0. The result is the product of the rounded activations times a with w.

Source: OCP Microscaling Formats v1.0 (E8M0, E2M1, MXFP4), OCP 8-bit Floating Point v1.0 (E4M3),
ggml-common.h of the ggml project (blocks), arXiv:2412.19437 section 3.3 (128x128 blocks).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from chiplet.api.features import Feature

if TYPE_CHECKING:
    from torch import Tensor


class Coding(StrEnum):
    """How one element of a stored weight is coded; the module's table has the layouts."""

    INT8 = "int8"
    INT4 = "int4"
    FP8_E4M3 = "fp8_e4m3"
    MXFP4 = "mxfp4"
    NVFP4 = "nvfp4"
    Q4_0 = "q4_0"
    Q4_1 = "q4_1"
    Q5_0 = "q5_0"
    Q5_1 = "q5_1"
    Q8_0 = "q8_0"
    Q4_K = "q4_k"
    Q5_K = "q5_k"
    Q6_K = "q6_k"

    @property
    def block(self) -> BlockShape | None:
        """Size of one of GGUF's blocks; None for other codings."""
        return _BLOCKS.get(self)


@dataclass(frozen=True, slots=True)
class BlockShape:
    """One block of a GGUF coding.

    Attributes:
        elements: of the weight, which share their scales.
        size_bytes: that they take together.
    """

    elements: int
    size_bytes: int


_BLOCKS = {
    Coding.Q4_0: BlockShape(32, 18),
    Coding.Q4_1: BlockShape(32, 20),
    Coding.Q5_0: BlockShape(32, 22),
    Coding.Q5_1: BlockShape(32, 24),
    Coding.Q8_0: BlockShape(32, 34),
    Coding.Q4_K: BlockShape(256, 144),
    Coding.Q5_K: BlockShape(256, 176),
    Coding.Q6_K: BlockShape(256, 210),
}


class Granularity(StrEnum):
    """What one scale covers."""

    TENSOR = "tensor"
    """The whole weight."""
    CHANNEL = "channel"
    """One output feature."""
    GROUP = "group"
    """`group_size` input features of one output feature."""
    BLOCK = "block"
    """A square of `group_size` output by `group_size` input features."""
    PACKED = "packed"
    """Scales stand inside the weight's own blocks (GGUF)."""


class Activations(StrEnum):
    """How the input of a layer is treated; the module says how it is rounded."""

    KEPT = "kept"
    """Not at all: weights alone are quantized."""
    PER_TOKEN = "per_token"
    """Quantized like the weights, with one scale per token."""
    PER_TOKEN_GROUP = "per_token_group"
    """Quantized like the weights, with one scale per token and `group_size` features."""
    STATIC = "static"
    """Quantized like the weights, with the scale that the checkpoint gives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightScheme:
    """What the numbers of a stored weight mean.

    Attributes:
        coding: of each element.
        granularity: what one scale covers.
        group_size: features that share a scale, for groups and blocks; otherwise 0.
        has_zero_points: each scale has a zero point beside it.
        activations: how the layer's input is treated.
    """

    coding: Coding
    granularity: Granularity
    group_size: int = 0
    has_zero_points: bool = False
    activations: Activations = Activations.KEPT

    def __post_init__(self) -> None:
        is_grouped = self.granularity in (Granularity.GROUP, Granularity.BLOCK)
        assert is_grouped == (self.group_size > 0), f"group_size does not fit {self}"
        assert (self.granularity is Granularity.PACKED) == (self.coding.block is not None), self

    @property
    def features(self) -> frozenset[Feature]:
        """What a provider must have heard of to serve it."""
        found = {_CODING_FEATURES.get(self.coding, Feature.BLOCK_WEIGHTS)}
        if self.has_zero_points:
            found.add(Feature.ZERO_POINTS)
        if self.activations is Activations.STATIC:
            found.add(Feature.STATIC_ACTIVATIONS)
        elif self.activations is not Activations.KEPT:
            found.add(Feature.DYNAMIC_ACTIVATIONS)
        return frozenset(found)

    def __str__(self) -> str:
        """A few words for people, like 'int4 groups of 128 with zero points'."""
        if self.coding.block is not None:
            return str(self.coding)
        plural = f"{self.granularity}s of {self.group_size}"
        words = f"{self.coding} {plural if self.group_size else f'per {self.granularity}'}"
        zeros = " with zero points" if self.has_zero_points else ""
        kept = self.activations is Activations.KEPT
        return words + zeros + ("" if kept else f", activations {self.activations}")


_CODING_FEATURES = {
    Coding.INT8: Feature.INT8_WEIGHTS,
    Coding.INT4: Feature.INT4_WEIGHTS,
    Coding.FP8_E4M3: Feature.FP8_WEIGHTS,
    Coding.MXFP4: Feature.MXFP4_WEIGHTS,
    Coding.NVFP4: Feature.NVFP4_WEIGHTS,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearWeights:
    """The weights of one linear layer in canonical tensors; the module's table has shapes.

    Attributes:
        scheme: what the numbers mean; None for plain floating-point weights.
        weight, scales, zero_points, global_scales, input_scale: as the module's table has them;
            None where the scheme has none.
        bias: `[N]` in the request's dtype.
    """

    scheme: WeightScheme | None
    weight: Tensor
    scales: Tensor | None = None
    zero_points: Tensor | None = None
    global_scales: Tensor | None = None
    input_scale: Tensor | None = None
    bias: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Output and input features, N and K."""
        rows, columns = self.weight.shape
        if self.scheme is None:
            return rows, columns
        block = self.scheme.coding.block
        if block is not None:
            return rows, columns // block.size_bytes * block.elements
        halves = self.scheme.coding in (Coding.INT4, Coding.MXFP4, Coding.NVFP4)
        return rows, 2 * columns if halves else columns

    def mapped(self, function: Callable[[Tensor], Tensor]) -> LinearWeights:
        """The same weights with a function applied to each tensor, whose shape it must keep unless
        the caller knows better.
        """
        tensors = {each.name: getattr(self, each.name) for each in fields(self)[1:]}
        return replace(
            self, **{name: function(each) for name, each in tensors.items() if each is not None}
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFacts:
    """A linear layer that may be quantized.

    Attributes:
        name: of the checkpoint's matrix without 'weight', like 'model.layers.0.mlp.down_proj'; of
            stacked matrices, each is asked about.
        role: the layer's name in `LinearRequest`, like 'qkv_proj' or 'lm_head'.
        in_features: K, of the rank's own share.
        out_features: N of the matrix, of the rank's own share.
    """

    name: str
    role: str
    in_features: int
    out_features: int


class QuantizationFormat(Protocol):
    """One way to quantize plain weights while they are loaded.

    Attributes:
        name: the word that `--quantization` takes.
    """

    name: str

    def scheme(self, layer: LayerFacts) -> WeightScheme | None:
        """How a linear layer's weight is to be stored; None leaves it plain. Pure.

        Raises:
            ConfigError: the layer has no quantized form.
        """
        ...

    def quantize(self, weight: Tensor, scheme: WeightScheme) -> LinearWeights:
        """The canonical tensors of a weight, without bias, on its device.

        Shapes: weight `[N, K]`, floating-point.
        Mutates: nothing.

        Args:
            weight: plain.
            scheme: what `scheme` gave for the layer.

        Raises:
            ModelError: the weight holds what cannot be quantized.
        """
        ...
