"""What families of decoders share: all that is around their layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from torch import Tensor

from chiplet.config import ModelConfig
from chiplet.forward_batch import ForwardBatch
from chiplet.layers.attention import AttentionInputs, PagedAttention
from chiplet.layers.context import LayerContext
from chiplet.layers.embedding import TABLE, Embedding
from chiplet.layers.linear import Linear
from chiplet.layers.norm import RmsNorm
from chiplet.layers.rows import Rows, every_row
from chiplet.layers.weights import WeightMap, WeightTarget
from chiplet.models.stretched import Stretched, stretched
from chiplet.parallel.sharding import Shard

LAYERS = "model.layers"
"""What names of the layers' tensors begin with."""


class Attends(Protocol):
    """The attention of a layer."""

    @property
    def attend(self) -> PagedAttention:
        """What owns the layer's pages."""
        ...


class DecoderLayer(Protocol):
    """One block of attention and feed-forward."""

    @property
    def attention(self) -> Attends:
        """Its first part."""
        ...

    def __call__(
        self,
        x: Tensor,
        residual: Tensor | None,
        positions: Tensor,
        attention: AttentionInputs,
        wanted: Rows,
    ) -> tuple[Tensor, Tensor]:
        """The layer's contribution, and the residual that it is still to be added to.

        Of all tokens keys and values are cached; results are those of the wanted ones.
        """
        ...

    def weights(self) -> Iterator[tuple[str, WeightTarget]]:
        """Names of the checkpoint's tensors, and where they go."""
        ...


class Decoder:
    """Embedding, layers, norm, and a head that may be tied to the embedding; a `CausalLM`."""

    def __init__(
        self, config: ModelConfig, context: LayerContext, layers: Sequence[DecoderLayer]
    ) -> None:
        vocab_size, hidden_size = config.vocab_size, config.hidden_size
        self._layers = layers
        self._bindings = context.bindings
        self._stretched: Stretched | None = None
        self._norm = RmsNorm(context, hidden_size=hidden_size, eps=config.rms_norm_eps)
        is_tied = config.tie_word_embeddings
        self._head = Linear(
            context.giving_rows() if is_tied else context,
            "lm_head",
            in_features=hidden_size,
            parts={f"model.{TABLE}" if is_tied else "lm_head": vocab_size},
            shard=Shard.GATHERED,
        )
        self._embedding = Embedding(
            context.within("model"),
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            head=self._head if is_tied else None,
        )

    def forward(self, batch: ForwardBatch, attention: AttentionInputs) -> Tensor:
        """Logits at the batch's `logit_rows`, `[num_logit_rows, vocab_size]`."""
        x, residual = self._embedding(batch.token_ids), None
        if self._stretched is not None and batch.num_tokens <= self._stretched.max_rows:
            x, _ = self._norm(self._stretched(x, batch.positions, attention), None)
            return self._head(batch.at_logit_rows(x))
        *layers, last = self._layers
        for layer in layers:
            x, residual = layer(x, residual, batch.positions, attention, every_row)
        # Of the last layer nobody sees the others: most of a prompt's tokens end at its attention.
        x, residual = last(x, residual, batch.positions, attention, batch.at_logit_rows)
        x, _ = self._norm(x, residual)
        return self._head(x)

    def join(self) -> None:
        """Let few tokens run through several layers in one call, where somebody offers that.

        All weights are there.
        """
        self._stretched = stretched(self._layers, self._bindings)

    def attention_layers(self) -> Sequence[PagedAttention]:
        """Layers that own pages, in the order of their KV tensors."""
        return [layer.attention.attend for layer in self._layers]

    def weight_map(self) -> WeightMap:
        """Where each tensor of the checkpoint goes."""
        weights: dict[str, tuple[WeightTarget, ...]] = {}
        for name, target in (
            *self._embedding.weights(),
            *self._head.weights(),  # of the same name, where the head is tied
            ("model.norm.weight", WeightTarget(self._norm, "weight")),
            *(each for layer in self._layers for each in layer.weights()),
        ):
            weights[name] = (*weights.get(name, ()), target)
        return weights
