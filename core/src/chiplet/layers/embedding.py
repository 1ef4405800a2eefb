"""Embedding: one row of a table per token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from chiplet.api import LinearWeights, Op
from chiplet.layers.context import LayerContext, torch_dtype
from chiplet.layers.linear import Linear
from chiplet.layers.weights import Shape, Weight, WeightTarget
from chiplet.parallel.sharding import cut_padded
from chiplet.reference.quantization import dequantize_to

TABLE = "embed_tokens"
"""What a context calls the table."""


class Embedding:
    """One row of a table per token; ranks share out the rows.

    A table that stays in its coding is the weight of a linear layer that gives rows: of the head,
    where the head is tied to it.
    """

    def __init__(
        self,
        context: LayerContext,
        *,
        vocab_size: int,
        hidden_size: int,
        head: Linear | None = None,
    ) -> None:
        """Bind the layer.

        Args:
            context: what every layer needs.
            vocab_size: rows of the table.
            hidden_size: columns of the table.
            head: the layer whose weight is the same table, if there is one.
        """
        self._run = context.op(Op.EMBEDDING)
        self._context = context
        self._ranks = ranks = context.ranks
        self._name = f"{context.name_of(TABLE)}.weight"
        self._is_tied = head is not None
        if head is None and self._name in context.stored:
            rows_context = context.giving_rows()
            parts = {TABLE: vocab_size}
            head = Linear(rows_context, "embedding", in_features=hidden_size, parts=parts)
        self._rows: Linear | None = head if head is not None and head.gives_rows else None
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
        if self._rows is not None:
            return self._rows.rows(token_ids)
        if not self._ranks.is_shared:
            return self._run(token_ids, self._table)
        rows = token_ids - self._first_row
        is_here = (rows >= 0) & (rows < self._cut.width)
        found = self._run(rows.clamp(0, self._cut.width - 1), self._table)
        return self._ranks.all_reduce(found.masked_fill(~is_here.unsqueeze(1), 0))

    def weights(self) -> Iterator[tuple[str, WeightTarget]]:
        """Name of the checkpoint's tensor, and where it goes; none where the head takes it."""
        if self._rows is None:
            yield self._name, WeightTarget(self, "weight")
        elif not self._is_tied:
            yield from self._rows.weights()

    def load(self, part: str, weight: Weight) -> None:
        """Take the table."""
        if isinstance(weight, LinearWeights):
            weight = dequantize_to(weight, torch_dtype(self._context.dtype))
        tables = [
            self._context.place(self._cut.take(weight, each)) for each in self._ranks.local_ranks
        ]
        self._table = self._ranks.join(tables)

    def adopt(self, other: Embedding) -> bool:
        """Take over the table."""
        self._table = other._table
        return True
