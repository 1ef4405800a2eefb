"""What formats that quantize plain weights share."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from chiplet.api import LinearWeights, WeightScheme
from chiplet.errors import ModelError

KEPT_ROLES = frozenset({"lm_head", "router"})
"""Layers that stay plain: small errors there change answers most, and they are few."""

_SLICE_ELEMENTS = 1 << 22


def row_slices(weight: Tensor) -> Iterator[Tensor]:
    """A weight's rows in float32, a few at a time, so that no whole copy is ever made.

    Shapes: weight `[N, K]`; gives `[some rows, K]`.

    Raises:
        ModelError: a number is not finite.
    """
    for rows in weight.split(max(1, _SLICE_ELEMENTS // weight.shape[1])):
        if not bool(rows.isfinite().all()):
            raise ModelError(
                "A weight holds NaN or infinity, which has no quantized form.",
                remedy="Load the model with --quantization none, or get an undamaged checkpoint.",
            )
        yield rows.float()


def per_output(
    weight: Tensor, scheme: WeightScheme, *, largest: float, code: Callable[[Tensor], Tensor]
) -> LinearWeights:
    """Codes of weights over a scale for each output feature.

    Args:
        weight: `[N, K]`.
        scheme: of the result.
        largest: magnitude of the largest code.
        code: rounds weights in units of their scale, at most `largest`.
    """
    codes: list[Tensor] = []
    scales: list[Tensor] = []
    for rows in row_slices(weight):
        scale = rows.abs().amax(1) / largest
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        codes.append(code((rows / scale[:, None]).clamp(-largest, largest)))
        scales.append(scale)
    return LinearWeights(scheme=scheme, weight=torch.cat(codes), scales=torch.cat(scales))
