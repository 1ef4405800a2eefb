"""Weight targets: which tensor of a checkpoint goes where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from chiplet.api import LinearWeights

Shape = tuple[int, ...]
Weight = Tensor | LinearWeights
"""A checkpoint's tensor, or a matrix in the coding in which the checkpoint holds it."""


class WeightHolder(Protocol):
    """A layer with weights, filled part by part."""

    @property
    def part_shapes(self) -> Mapping[str, Shape]:
        """Every part with the shape of its checkpoint tensor."""
        ...

    def load(self, part: str, weight: Weight) -> None:
        """Take one part; the layer is ready after the last one.

        The weight is fresh: the layer may keep it. Its shape has been checked.
        """
        ...

    def adopt(self, other: Any) -> bool:
        """Take over the weights of the same layer in another copy of the model.

        Args:
            other: of the same type, with its weights.

        Returns:
            False if it packs them in another way and must load them itself.
        """
        ...


class WeightTarget(NamedTuple):
    """One part of one layer.

    Attributes:
        holder: the layer.
        part: the word that the layer knows it by, one of `part_shapes`.
    """

    holder: WeightHolder
    part: str


WeightMap = Mapping[str, tuple[WeightTarget, ...]]
"""From a checkpoint's tensor name to every place that takes it (tied weights have several)."""
