"""Format int4: plain weights to four bits in groups with zero points; activations are kept."""

from __future__ import annotations

import torch
from torch import Tensor

from chiplet.api import Coding, Granularity, LayerFacts, LinearWeights, WeightScheme
from chiplet.errors import ConfigError
from chiplet.formats.quantization.rounding import KEPT_ROLES, row_slices
from chiplet.reference.quantization import pack_halves

_GROUP_SIZES = (128, 64, 32, 16)
_LARGEST = 15


class Int4Groups:
    """Rounds each group's weights to 16 levels that reach from its smallest to its largest.

    With zero points: 16 levels are few, and a symmetric range wastes those on the side where a
    group has no weights.
    """

    name = "int4"

    def scheme(self, layer: LayerFacts) -> WeightScheme | None:
        """Groups of 128, or of the largest size below it that divides the input.

        Raises:
            ConfigError: none does.
        """
        if layer.role in KEPT_ROLES:
            return None
        fitting = [size for size in _GROUP_SIZES if layer.in_features % size == 0]
        if not fitting:
            raise ConfigError(
                f"Layer {layer.name} has {layer.in_features} input features, which groups of none "
                f"of the sizes {', '.join(map(str, _GROUP_SIZES))} divide.",
                remedy="Choose --quantization int8 or none.",
            )
        return WeightScheme(
            coding=Coding.INT4,
            granularity=Granularity.GROUP,
            group_size=fitting[0],
            has_zero_points=True,
        )

    def quantize(self, weight: Tensor, scheme: WeightScheme) -> LinearWeights:
        """See `chiplet.api.QuantizationFormat.quantize`."""
        slices = [_quantize_rows(rows, scheme.group_size) for rows in row_slices(weight)]
        codes, scales, zero_points = zip(*slices, strict=True)
        return LinearWeights(
            scheme=scheme,
            weight=torch.cat(codes),
            scales=torch.cat(scales),
            zero_points=torch.cat(zero_points),
        )


def _quantize_rows(rows: Tensor, group_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes `[N, K / 2] uint8`, scales `[N, K / G] float32` and zero points `[N, K / G] uint8`."""
    groups = rows.unflatten(1, (-1, group_size))
    # Zero lies in the range, so that it is exact and the zero point fits four bits.
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    scales = (high - low) / _LARGEST
    scales = torch.where(scales > 0, scales, torch.ones_like(scales))
    zero_points = (-low / scales).round()
    codes = (groups / scales[..., None]).round() + zero_points[..., None]
    codes = codes.clamp(0, _LARGEST).to(torch.uint8).flatten(1)
    return pack_halves(codes), scales, zero_points.to(torch.uint8)
