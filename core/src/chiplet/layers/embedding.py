"""Embedding: one row of a table per token."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from chiplet.api import Op
from chiplet.layers.context import LayerContext
from chiplet.layers.weights import Shape
from chiplet.parallel.sharding import cut_padded


class Embedding:
    """One row of a table per token; ranks share out the rows."""

    def __init__(self, context: LayerContext, *, vocab_size: int, hidden_size: int) -> None:
        self._run = context.op(Op.EMBEDDING)
        self._place = context.place
        self._ranks = ranks = context.ranks
        self._cut = cut_padded(vocab_size, ranks.size, dim=0)
        self._table = torch.empty(0)
        # Data, not a number: in one program for all ranks, each has another value.
        firsts = [
            torch.tensor([self._cut.starts[rank]], dtype=torch.int32, device=context.device)
            for rank in ranks.local_ranks
        ]
        self._first_row: Tensor = ranks.join(firsts)
        self.part_shapes: Mapping[str, Shape] = {"weight": (vocab_size, hidden_size)}

    def __call__(self, token_ids: Tensor) -> Tensor:
        """Shapes: token_ids `[num_tokens] int32`; returns `[num_tokens, hidden_size]`."""
        if not self._ranks.is_shared:
            return self._run(token_ids, self._table)
        rows = token_ids - self._first_row
        is_here = (rows >= 0) & (rows < self._cut.width)
        found = self._run(rows.clamp(0, self._cut.width - 1), self._table)
        return self._ranks.all_reduce(found.masked_fill(~is_here.unsqueeze(1), 0))

    def load(self, part: str, tensor: Tensor) -> None:
        """Take the table."""
        tables = [self._place(self._cut.take(tensor, each)) for each in self._ranks.local_ranks]
        self._table = self._ranks.join(tables)

    def adopt(self, other: Embedding) -> bool:
        """Take over the table."""
        self._table = other._table
        return True
