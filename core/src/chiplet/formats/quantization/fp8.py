"""Format fp8: plain weights to eight-bit floating point per output feature; activations are kept.

Source: OCP 8-bit Floating Point v1.0 (E4M3).
"""

from __future__ import annotations

import torch
from torch import Tensor

from chiplet.api import Coding, Granularity, LayerFacts, LinearWeights, WeightScheme
from chiplet.formats.quantization.rounding import KEPT_ROLES, row_slices

_LARGEST = 448.0
_SCHEME = WeightScheme(coding=Coding.FP8_E4M3, granularity=Granularity.CHANNEL)


class Fp8Channels:
    """Rounds each output feature's weights to E4M3 times its scale."""

    name = "fp8"

    def scheme(self, layer: LayerFacts) -> WeightScheme | None:
        """Eight bits for every layer but the sensitive ones."""
        return None if layer.role in KEPT_ROLES else _SCHEME

    def quantize(self, weight: Tensor, scheme: WeightScheme) -> LinearWeights:
        """See `chiplet.api.QuantizationFormat.quantize`."""
        codes, scales = zip(*map(_quantize_rows, row_slices(weight)), strict=True)
        return LinearWeights(scheme=scheme, weight=torch.cat(codes), scales=torch.cat(scales))


def _quantize_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Codes `[N, K] float8_e4m3fn` and scales `[N] float32`."""
    scales = rows.abs().amax(1) / _LARGEST
    scales = torch.where(scales > 0, scales, torch.ones_like(scales))
    codes = (rows / scales[:, None]).clamp(-_LARGEST, _LARGEST)
    return codes.to(torch.float8_e4m3fn), scales
