"""CausalLM: what the runner and the weight loader need of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from chiplet.forward_batch import ForwardBatch
from chiplet.layers.attention import AttentionInputs, PagedAttention
from chiplet.layers.weights import WeightMap


class CausalLM(Protocol):
    """A model that predicts the next token."""

    def forward(self, batch: ForwardBatch, attention: AttentionInputs) -> Tensor:
        """Logits at the batch's `logit_rows`, `[num_logit_rows, vocab_size]`.

        Mutates: the pages in `attention`.
        """
        ...

    def attention_layers(self) -> Sequence[PagedAttention]:
        """Layers that own pages, in the order of their KV tensors."""
        ...

    def weight_map(self) -> WeightMap:
        """Where each tensor of the checkpoint goes."""
        ...


@runtime_checkable
class Joining(Protocol):
    """A model whose layers may be joined once their weights are there; optional."""

    def join(self) -> None:
        """Look for what computes several layers in one call."""
        ...
