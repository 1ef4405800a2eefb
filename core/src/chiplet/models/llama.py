"""The Llama family: Llama 2 and 3, Mistral, Mixtral, SmolLM2, Qwen3, dense or of experts.

Source: arXiv:2302.13971 (architecture), arXiv:2310.06825 (sliding window), arXiv:2401.04088
(experts), arXiv:2505.09388 (norms of queries and keys).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from chiplet.config import ModelConfig
from chiplet.forward_batch import ForwardBatch
from chiplet.layers.attention import AttentionInputs, PagedAttention
from chiplet.layers.context import LayerContext
from chiplet.layers.embedding import Embedding
from chiplet.layers.linear import Linear
from chiplet.layers.mlp import GatedMlp
from chiplet.layers.moe import SparseMlp
from chiplet.layers.norm import HeadNorm, RmsNorm
from chiplet.layers.rotary import RotaryEmbedding
from chiplet.layers.weights import WeightHolder, WeightMap, WeightTarget
from chiplet.parallel.sharding import Shard


class LlamaAttention:
    """Rotary attention with grouped keys and values."""

    def __init__(
        self,
        config: ModelConfig,
        context: LayerContext,
        layer_index: int,
        rotary: RotaryEmbedding,
    ) -> None:
        self.qkv_proj = Linear(
            context,
            "qkv_proj",
            in_features=config.hidden_size,
            parts={
                "q": config.num_heads * config.head_dim,
                "k": config.num_kv_heads * config.head_dim,
                "v": config.num_kv_heads * config.head_dim,
            },
            has_bias=config.attention_bias,
            shard=Shard.OUTPUT,
            unit=config.head_dim,
        )
        self.o_proj = Linear(
            context,
            "o_proj",
            in_features=config.num_heads * config.head_dim,
            parts={"weight": config.hidden_size},
            has_bias=config.attention_bias,
            shard=Shard.INPUT,
            unit=config.head_dim,
        )
        self.attend = PagedAttention(
            context,
            layer_index,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            window=config.sliding_window,
        )
        self.norms: dict[str, HeadNorm] = {
            name: HeadNorm(context, head_dim=config.head_dim, eps=config.rms_norm_eps)
            for name in (("q_norm", "k_norm") if config.qk_norm else ())
        }
        self._rotary = rotary

    def __call__(self, x: Tensor, positions: Tensor, attention: AttentionInputs) -> Tensor:
        """Shapes: x and result `[num_tokens, hidden_size]`; positions `[num_tokens] int32`."""
        q, k, v = self.attend.split(self.qkv_proj(x))
        if self.norms:
            q, k = self.norms["q_norm"](q), self.norms["k_norm"](k)
        q, k = self._rotary(q, k, positions)
        return self.o_proj(self.attend(q, k, v, attention).flatten(1))


class LlamaLayer:
    """Attention, then feed-forward, each behind a norm and added to the residual."""

    def __init__(
        self,
        config: ModelConfig,
        context: LayerContext,
        layer_index: int,
        rotary: RotaryEmbedding,
    ) -> None:
        hidden_size, eps = config.hidden_size, config.rms_norm_eps
        self.input_norm = RmsNorm(context, hidden_size=hidden_size, eps=eps)
        self.attention = LlamaAttention(config, context, layer_index, rotary)
        self.mlp_norm = RmsNorm(context, hidden_size=hidden_size, eps=eps)
        self.mlp = _make_mlp(config, context)
        self._expert_names = EXPERT_NAMES.get(config.architecture, EXPERT_NAMES[""])

    def __call__(
        self, x: Tensor, residual: Tensor | None, positions: Tensor, attention: AttentionInputs
    ) -> tuple[Tensor, Tensor]:
        """The layer's contribution, and the residual that it is still to be added to."""
        x, residual = self.input_norm(x, residual)
        x = self.attention(x, positions, attention)
        x, residual = self.mlp_norm(x, residual)
        return self.mlp(x), residual

    def weights(self) -> Iterator[tuple[str, WeightTarget]]:
        """Names within the layer, and where they go."""
        for name, layer, part in (
            ("self_attn.q_proj", self.attention.qkv_proj, "q"),
            ("self_attn.k_proj", self.attention.qkv_proj, "k"),
            ("self_attn.v_proj", self.attention.qkv_proj, "v"),
            ("self_attn.o_proj", self.attention.o_proj, "weight"),
            *self._mlp_weights(),
        ):
            yield f"{name}.weight", WeightTarget(layer, part)
            if f"{part}.bias" in layer.part_shapes:
                yield f"{name}.bias", WeightTarget(layer, f"{part}.bias")
        for name, norm in self.attention.norms.items():
            yield f"self_attn.{name}.weight", WeightTarget(norm, "weight")
        yield "input_layernorm.weight", WeightTarget(self.input_norm, "weight")
        yield "post_attention_layernorm.weight", WeightTarget(self.mlp_norm, "weight")

    def _mlp_weights(self) -> Iterator[tuple[str, WeightHolder, str]]:
        if isinstance(self.mlp, GatedMlp):
            yield "mlp.gate_proj", self.mlp.gate_up_proj, "gate"
            yield "mlp.up_proj", self.mlp.gate_up_proj, "up"
            yield "mlp.down_proj", self.mlp.down_proj, "weight"
            return
        names = self._expert_names
        yield f"{names.block}.gate", self.mlp.router, "weight"
        for part in self.mlp.experts.part_shapes:
            index, _, name = part.partition(".")
            yield f"{names.block}.experts.{index}.{names.parts[name]}", self.mlp.experts, part


class ExpertNames(NamedTuple):
    """What a checkpoint calls a layer's experts, and the parts of each."""

    block: str
    parts: Mapping[str, str]


EXPERT_NAMES = {
    "": ExpertNames("mlp", {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}),
    "MixtralForCausalLM": ExpertNames("block_sparse_moe", {"gate": "w1", "up": "w3", "down": "w2"}),
}
"""By architecture; the first is for all others."""


def _make_mlp(config: ModelConfig, context: LayerContext) -> GatedMlp | SparseMlp:
    if config.experts is not None:
        return SparseMlp(context, hidden_size=config.hidden_size, experts=config.experts)
    return GatedMlp(
        context,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        has_bias=config.mlp_bias,
    )


class LlamaForCausalLM:
    """Embedding, layers, norm, and a head that may be tied to the embedding."""

    def __init__(self, config: ModelConfig, context: LayerContext) -> None:
        vocab_size, hidden_size = config.vocab_size, config.hidden_size
        rotary = RotaryEmbedding(
            context,
            head_dim=config.head_dim,
            theta=config.rope_theta,
            scaling=config.rope_scaling,
        )
        self.embedding = Embedding(context, vocab_size=vocab_size, hidden_size=hidden_size)
        self.layers = [
            LlamaLayer(config, context, layer_index, rotary)
            for layer_index in range(config.num_layers)
        ]
        self.norm = RmsNorm(context, hidden_size=hidden_size, eps=config.rms_norm_eps)
        self.lm_head = Linear(
            context,
            "lm_head",
            in_features=hidden_size,
            parts={"weight": vocab_size},
            shard=Shard.GATHERED,
        )
        self._is_tied = config.tie_word_embeddings

    def forward(self, batch: ForwardBatch, attention: AttentionInputs) -> Tensor:
        """Logits at the batch's `logit_rows`, `[num_logit_rows, vocab_size]`."""
        x, residual = self.embedding(batch.token_ids), None
        for layer in self.layers:
            x, residual = layer(x, residual, batch.positions, attention)
        x, _ = self.norm(x, residual)
        return self.lm_head(x[batch.logit_rows])

    def attention_layers(self) -> Sequence[PagedAttention]:
        """Layers that own pages, in the order of their KV tensors."""
        return [layer.attention.attend for layer in self.layers]

    def weight_map(self) -> WeightMap:
        """Where each tensor of the checkpoint goes."""
        embedding = WeightTarget(self.embedding, "weight")
        head = WeightTarget(self.lm_head, "weight")
        weights: dict[str, tuple[WeightTarget, ...]] = {
            "model.embed_tokens.weight": (embedding, head) if self._is_tied else (embedding,),
            "model.norm.weight": (WeightTarget(self.norm, "weight"),),
        }
        if not self._is_tied:
            weights["lm_head.weight"] = (head,)
        for index, layer in enumerate(self.layers):
            for name, target in layer.weights():
                weights[f"model.layers.{index}.{name}"] = (target,)
        return weights
