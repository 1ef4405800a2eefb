"""What formats that quantize plain weights share."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

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
