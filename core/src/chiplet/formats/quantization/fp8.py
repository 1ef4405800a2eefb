"""Formats fp8 and fp8-dynamic: plain weights to eight-bit floating point per output feature.

The first keeps activations, the second rounds them too, per token.

Source: OCP 8-bit Floating Point v1.0 (E4M3).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from chiplet.api import Activations, Coding, Granularity, LayerFacts, LinearWeights, WeightScheme
from chiplet.formats.quantization.rounding import KEPT_ROLES, per_output

_LARGEST = 448.0
_SCHEME = WeightScheme(coding=Coding.FP8_E4M3, granularity=Granularity.CHANNEL)
_DYNAMIC = replace(_SCHEME, activations=Activations.PER_TOKEN)


class Fp8Channels:
    """Rounds each output feature's weights to E4M3 times its scale."""

    name = "fp8"

    def scheme(self, layer: LayerFacts) -> WeightScheme | None:
        """Eight bits for every layer but the sensitive ones."""
        return None if layer.role in KEPT_ROLES else _SCHEME

    def quantize(self, weight: Tensor, scheme: WeightScheme) -> LinearWeights:
        """See `chiplet.api.QuantizationFormat.quantize`."""
        return per_output(weight, scheme, largest=_LARGEST, code=_code)


class DynamicFp8Channels:
    """The same, and rounds activations to E4M3 times a scale for each token, in each step."""

    name = "fp8-dynamic"

    def scheme(self, layer: LayerFacts) -> WeightScheme | None:
        """Eight bits for every layer but the sensitive ones."""
        return None if layer.role in KEPT_ROLES else _DYNAMIC

    def quantize(self, weight: Tensor, scheme: WeightScheme) -> LinearWeights:
        """See `chiplet.api.QuantizationFormat.quantize`."""
        return per_output(weight, scheme, largest=_LARGEST, code=_code)


def _code(scaled: Tensor) -> Tensor:
    return scaled.to(torch.float8_e4m3fn)
