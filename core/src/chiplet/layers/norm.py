"""Norms: of a layer's input, with the residual sum carried along, and of attention heads."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from chiplet.api import Op
from chiplet.layers.context import LayerContext
from chiplet.layers.weights import Shape, Weight


class HeadNorm:
    """Root-mean-square norm of each attention head by itself, with a scale that heads share."""

    def __init__(self, context: LayerContext, *, head_dim: int, eps: float) -> None:
        self._norm = context.op(Op.RMS_NORM)
        self._eps = eps
        self._place = context.place
        self._weight = torch.empty(0)
        self.part_shapes: Mapping[str, Shape] = {"weight": (head_dim,)}

    def __call__(self, x: Tensor) -> Tensor:
        """Shapes: x, possibly strided, and result `[num_tokens, num_heads, head_dim]`."""
        rows = x.reshape(-1, x.shape[-1])
        return self._norm(rows, self._weight, self._eps).view(x.shape)

    def load(self, part: str, weight: Weight) -> None:
        """Take the scale."""
        assert isinstance(weight, Tensor), "norms are never in a coding"
        self._weight = self._place(weight)

    def adopt(self, other: HeadNorm) -> bool:
        """Take over the scale."""
        self._weight = other._weight
        return True


class RmsNorm:
    """Root-mean-square norm with a learned scale.

    Attributes:
        eps: what is added to the mean square.
    """

    def __init__(self, context: LayerContext, *, hidden_size: int, eps: float) -> None:
        self._norm = context.op(Op.RMS_NORM)
        self._add_norm = context.op(Op.ADD_RMS_NORM)
        self.eps = eps
        self._place = context.place
        self._weight = torch.empty(0)
        self.part_shapes: Mapping[str, Shape] = {"weight": (hidden_size,)}

    def __call__(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """The norm of x + residual, and that sum; without a residual, of x itself.

        Shapes: x, residual and both results `[num_tokens, hidden_size]`.
        """
        if residual is None:
            return self._norm(x, self._weight, self.eps), x
        return self._add_norm(x, residual, self._weight, self.eps)

    @property
    def weight(self) -> Tensor:
        """The scale, `[hidden_size]`."""
        return self._weight

    def load(self, part: str, weight: Weight) -> None:
        """Take the scale."""
        assert isinstance(weight, Tensor), "norms are never in a coding"
        self._weight = self._place(weight)

    def adopt(self, other: RmsNorm) -> bool:
        """Take over the scale."""
        self._weight = other._weight
        return True
