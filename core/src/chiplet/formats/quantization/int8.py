"""Format int8: plain weights to eight bits per output feature, activations per token."""

from __future__ import annotations

import torch
from torch import Tensor

from chiplet.api import Activations, Coding, Granularity, LayerFacts, LinearWeights, WeightScheme
from chiplet.formats.quantization.rounding import KEPT_ROLES, per_output

_LARGEST = 127
_SCHEME = WeightScheme(
    coding=Coding.INT8, granularity=Granularity.CHANNEL, activations=Activations.PER_TOKEN
)


class Int8Channels:
    """Rounds each output feature's weights to -127..127 times its scale."""

    name = "int8"

    def scheme(self, layer: LayerFacts) -> WeightScheme | None:
        """Eight bits for every layer but the sensitive ones."""
        return None if layer.role in KEPT_ROLES else _SCHEME

    def quantize(self, weight: Tensor, scheme: WeightScheme) -> LinearWeights:
        """See `chiplet.api.QuantizationFormat.quantize`."""
        return per_output(weight, scheme, largest=_LARGEST, code=_code)


def _code(scaled: Tensor) -> Tensor:
    return scaled.round().to(torch.int8)
