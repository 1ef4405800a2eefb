"""Format int8: plain weights to eight bits per output feature, activations per token."""

from __future__ import annotations

import torch
from torch import Tensor

from chiplet.api import Activations, Coding, Granularity, LayerFacts, LinearWeights, WeightScheme
from chiplet.formats.quantization.rounding import KEPT_ROLES, row_slices

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
        codes, scales = zip(*map(_quantize_rows, row_slices(weight)), strict=True)
        return LinearWeights(scheme=scheme, weight=torch.cat(codes), scales=torch.cat(scales))


def _quantize_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Codes `[N, K] int8` and scales `[N] float32`."""
    scales = rows.abs().amax(1) / _LARGEST
    scales = torch.where(scales > 0, scales, torch.ones_like(scales))
    codes = (rows / scales[:, None]).round().clamp(-_LARGEST, _LARGEST)
    return codes.to(torch.int8), scales
