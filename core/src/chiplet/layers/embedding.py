"""Embedding: one row of a table per token."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from chiplet.api import Op
from chiplet.layers.context import LayerContext
from chiplet.layers.weights import Shape


class Embedding:
    """One row of a table per token."""

    def __init__(self, context: LayerContext, *, vocab_size: int, hidden_size: int) -> None:
        self._run = context.op(Op.EMBEDDING)
        self._place = context.place
        self._table = torch.empty(0)
        self.part_shapes: Mapping[str, Shape] = {"weight": (vocab_size, hidden_size)}

    def __call__(self, token_ids: Tensor) -> Tensor:
        """Shapes: token_ids `[num_tokens] int32`; returns `[num_tokens, hidden_size]`."""
        return self._run(token_ids, self._table)

    def load(self, part: str, tensor: Tensor) -> None:
        """Take the table."""
        self._table = self._place(tensor)
