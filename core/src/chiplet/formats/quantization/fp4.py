"""Formats mxfp4 and nvfp4: plain weights to four-bit floating point; activations are kept.

Both store E2M1 (0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives). Of mxfp4 32 weights share a power
of two, of nvfp4 16 share an E4M3 number, which counts in units of the output's own scale.

Source: OCP Microscaling Formats v1.0 (mxfp4), arXiv:2509.25149 section 2 (nvfp4).
"""

from __future__ import annotations

import torch
from torch import Tensor

from chiplet.api import Coding, Granularity, LayerFacts, LinearWeights, WeightScheme
from chiplet.errors import ConfigError
from chiplet.formats.quantization.rounding import KEPT_ROLES, row_slices
from chiplet.reference.quantization import pack_halves

_LARGEST = 6.0
_LARGEST_SCALE = 448.0
_LOW_EXPONENT, _HIGH_EXPONENT = -127, 127
# Between neighbours of E2M1; of a tie the even code, which is the upper one of every second.
_MIDDLES = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)
_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


class Mxfp4:
    """Rounds each group's weights to E2M1 times a power of two."""

    name = "mxfp4"

    def scheme(self, layer: LayerFacts) -> WeightScheme | None:
        """Groups of 32.

        Raises:
            ConfigError: they do not divide the layer's inputs.
        """
        return _scheme(layer, Coding.MXFP4, 32)

    def quantize(self, weight: Tensor, scheme: WeightScheme) -> LinearWeights:
        """See `chiplet.api.QuantizationFormat.quantize`.

        Of a power at which the largest weight of a group is cut off, up to a quarter of it, and the
        one above, the power with the smaller sum of squared errors.
        """
        codes: list[Tensor] = []
        scales: list[Tensor] = []
        for rows in row_slices(weight):
            groups = rows.unflatten(1, (-1, scheme.group_size))
            largest = groups.abs().amax(-1)
            # The power below a quarter of it, from the exponent's bits: 6 is below 2 ** 3.
            low = (largest.view(torch.int32) >> 23) - 127 - 2
            low = low.clamp(_LOW_EXPONENT, _HIGH_EXPONENT)
            high = (low + 1).clamp(max=_HIGH_EXPONENT)
            candidates = [torch.ldexp(torch.ones_like(largest), each) for each in (low, high)]
            is_second, chosen = _best(groups, candidates)
            codes.append(chosen)
            scales.append((torch.where(is_second, high, low) + 127).to(torch.uint8))
        return LinearWeights(scheme=scheme, weight=torch.cat(codes), scales=torch.cat(scales))


class Nvfp4:
    """Rounds each group's weights to E2M1 times an E4M3 number times the output's scale."""

    name = "nvfp4"

    def scheme(self, layer: LayerFacts) -> WeightScheme | None:
        """Groups of 16.

        Raises:
            ConfigError: they do not divide the layer's inputs.
        """
        return _scheme(layer, Coding.NVFP4, 16)

    def quantize(self, weight: Tensor, scheme: WeightScheme) -> LinearWeights:
        """See `chiplet.api.QuantizationFormat.quantize`.

        The largest weight of a group becomes 6 or 4, whichever gives the smaller sum of squared
        errors: between 4 and 6 there is nothing.
        """
        codes: list[Tensor] = []
        scales: list[Tensor] = []
        levels: list[Tensor] = []
        for rows in row_slices(weight):
            groups = rows.unflatten(1, (-1, scheme.group_size))
            largest = groups.abs().amax(-1)
            level = largest.amax(1) / (_LARGEST * _LARGEST_SCALE)
            # Scales of a row of zeros are zero; its level must still be a number to divide by.
            level = torch.where(level > 0, level, torch.ones_like(level))
            stored = [
                (largest / (most * level[:, None]))
                .clamp(max=_LARGEST_SCALE)
                .to(torch.float8_e4m3fn)
                for most in (_LARGEST, 4.0)
            ]
            is_second, chosen = _best(groups, [each.float() * level[:, None] for each in stored])
            first, second = (each.view(torch.uint8) for each in stored)
            codes.append(chosen)
            scales.append(torch.where(is_second, second, first).view(torch.float8_e4m3fn))
            levels.append(level)
        return LinearWeights(
            scheme=scheme,
            weight=torch.cat(codes),
            scales=torch.cat(scales),
            global_scales=torch.cat(levels),
        )


def _scheme(layer: LayerFacts, coding: Coding, group_size: int) -> WeightScheme | None:
    if layer.role in KEPT_ROLES:
        return None
    if layer.in_features % group_size:
        raise ConfigError(
            f"Layer {layer.name} has {layer.in_features} input features, which groups of "
            f"{group_size} do not divide.",
            remedy="Choose --quantization int8 or none.",
        )
    return WeightScheme(coding=coding, granularity=Granularity.GROUP, group_size=group_size)


def _best(groups: Tensor, candidates: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Where the second scale of two is the better one, and the codes with the better.

    Shapes: groups `[N, K / G, G]`, candidates `[N, K / G]`; returns `[N, K / G] bool` and
    `[N, K / 2] uint8`.
    """
    values = torch.tensor([*_VALUES, *(-each for each in _VALUES)], device=groups.device)
    codes = [_codes(groups, scale) for scale in candidates]
    first, second = (
        (values[code.long()] * scale[..., None] - groups).square().sum(-1)
        for code, scale in zip(codes, candidates, strict=True)
    )
    is_second = second < first
    chosen = torch.where(is_second[..., None], codes[1], codes[0])
    return is_second, pack_halves(chosen.flatten(1))


def _codes(groups: Tensor, scales: Tensor) -> Tensor:
    """The nearest of E2M1 times a scale, of larger ones the largest; zero where the scale is.

    Shapes: groups `[N, K / G, G]`, scales `[N, K / G]`; returns `[N, K / G, G] uint8`.
    """
    safe = torch.where(scales > 0, scales, torch.full_like(scales, torch.inf))
    ratios = groups.abs() / safe[..., None]
    codes = torch.zeros(groups.shape, dtype=torch.uint8, device=groups.device)
    for index, middle in enumerate(_MIDDLES):
        codes += (ratios >= middle) if index % 2 else (ratios > middle)
    return codes + 8 * (groups < 0).to(torch.uint8)
