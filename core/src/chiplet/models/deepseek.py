"""The DeepSeek-V2 family: latent attention, and experts that are shared or picked by a router.

Source: arXiv:2405.04434.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from chiplet.config import ModelConfig
from chiplet.layers.attention import AttentionInputs, AttentionVariant, PagedAttention
from chiplet.layers.context import LayerContext
from chiplet.layers.latent import LatentHeads, PairedRotation
from chiplet.layers.linear import Linear
from chiplet.layers.mlp import GatedMlp
from chiplet.layers.moe import SparseMlp
from chiplet.layers.norm import RmsNorm
from chiplet.layers.rotary import RotaryEmbedding
from chiplet.layers.rows import Rows
from chiplet.layers.weights import WeightTarget
from chiplet.models.decoder import LAYERS, Decoder
from chiplet.models.deepseek_config import DeepseekConfig
from chiplet.parallel.sharding import Shard

_LATENT_EPS = 1e-6
"""Of norms within attention, whatever the others have."""


class LatentQueries:
    """Queries of all heads, made at once or through a narrower width."""

    def __init__(self, config: ModelConfig, own: DeepseekConfig, context: LayerContext) -> None:
        latent, rank = own.latent, own.latent.query_rank
        self.down_proj: Linear | None = None
        self.norm: RmsNorm | None = None
        if rank is not None:
            self.down_proj = Linear(
                context,
                "q_a_proj",
                in_features=config.hidden_size,
                parts={"q_a_proj": rank},
                has_bias=config.attention_bias,
            )
            self.norm = RmsNorm(context, hidden_size=rank, eps=_LATENT_EPS)
        name = "q_proj" if rank is None else "q_b_proj"
        self.up_proj = Linear(
            replace(context, stored={}),
            name,
            in_features=rank or config.hidden_size,
            parts={name: config.num_heads * latent.query_dim},
            shard=Shard.OUTPUT,
            unit=latent.query_dim,
        )
        self._up_target = PairedRotation(
            self.up_proj, context, name, unit=latent.query_dim, rotary_dim=latent.rotary_dim
        )
        self._prefix = context.prefix
        self._sizes = (latent.plain_dim, latent.rotary_dim)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Elements without and with a rotation, `[num_tokens, num_heads, ...]` each."""
        if self.down_proj is not None and self.norm is not None:
            x, _ = self.norm(self.down_proj(x), None)
        q = self.up_proj(x).unflatten(1, (-1, sum(self._sizes)))
        plain, rotary = q.split(self._sizes, dim=2)
        return plain, rotary

    def weights(self) -> Iterator[tuple[str, WeightTarget]]:
        """Names of the checkpoint's tensors, and where they go."""
        if self.down_proj is not None and self.norm is not None:
            yield from self.down_proj.weights()
            yield f"{self._prefix}.q_a_layernorm.weight", WeightTarget(self.norm, "weight")
        for name, target in self.up_proj.weights():
            yield name, WeightTarget(self._up_target, target.part)


class LatentAttention:
    """Attention whose keys and values are made from one row that a token caches for all heads."""

    def __init__(
        self,
        config: ModelConfig,
        own: DeepseekConfig,
        context: LayerContext,
        layer_index: int,
        rotary: RotaryEmbedding,
    ) -> None:
        latent = own.latent
        width = latent.rank + latent.rotary_dim
        name = "kv_a_proj_with_mqa"
        self.queries = LatentQueries(config, own, context)
        self.kv_down_proj = Linear(
            replace(context, stored={}),
            name,
            in_features=config.hidden_size,
            parts={name: width},
            has_bias=config.attention_bias,
        )
        self._kv_target = PairedRotation(
            self.kv_down_proj, context, name, unit=width, rotary_dim=latent.rotary_dim
        )
        self.kv_norm = RmsNorm(context, hidden_size=latent.rank, eps=_LATENT_EPS)
        self.heads = LatentHeads(
            context,
            num_heads=config.num_heads,
            plain_dim=latent.plain_dim,
            value_dim=latent.value_dim,
            rank=latent.rank,
        )
        self.attend = PagedAttention(
            context,
            layer_index,
            num_heads=config.num_heads,
            num_kv_heads=1,
            head_dim=width,
            variant=AttentionVariant(scale=own.scale, value_dim=latent.rank),
        )
        self.o_proj = Linear(
            context,
            "o_proj",
            in_features=config.num_heads * latent.value_dim,
            parts={"o_proj": config.hidden_size},
            has_bias=config.attention_bias,
            shard=Shard.INPUT,
            unit=latent.value_dim,
        )
        self._rotary = rotary
        self._prefix = context.prefix
        self._sizes = (latent.rank, latent.rotary_dim)

    def __call__(
        self, x: Tensor, positions: Tensor, attention: AttentionInputs, wanted: Rows
    ) -> Tensor:
        """Shapes: x `[num_tokens, hidden_size]`; returns `[num_wanted, hidden_size]`."""
        q, q_rotary = self.queries(x)
        rows, k_rotary = self.kv_down_proj(x).split(self._sizes, dim=1)
        rows, _ = self.kv_norm(rows.contiguous(), None)
        q_rotary, k_rotary = self._rotary(q_rotary, k_rotary.unsqueeze(1), positions)
        q = torch.cat([self.heads.queries(q), q_rotary], dim=2)
        k = torch.cat([rows.unsqueeze(1), k_rotary], dim=2)
        attended = wanted(self.attend(q, k, k, attention))
        return self.o_proj(self.heads.values(attended).flatten(1))

    def weights(self) -> Iterator[tuple[str, WeightTarget]]:
        """Names of the checkpoint's tensors, and where they go."""
        yield from self.queries.weights()
        for name, target in self.kv_down_proj.weights():
            yield name, WeightTarget(self._kv_target, target.part)
        yield f"{self._prefix}.kv_a_layernorm.weight", WeightTarget(self.kv_norm, "weight")
        yield f"{self._prefix}.kv_b_proj.weight", WeightTarget(self.heads, "weight")
        yield from self.o_proj.weights()


class SharedAndPicked:
    """A feed-forward part for all tokens, and experts that a router picks for each."""

    def __init__(self, config: ModelConfig, own: DeepseekConfig, context: LayerContext) -> None:
        self.picked = SparseMlp(context, hidden_size=config.hidden_size, experts=own.experts)
        self.shared = GatedMlp(
            context.within("shared_experts"),
            hidden_size=config.hidden_size,
            intermediate_size=own.shared_width,
            has_bias=config.mlp_bias,
        )
        self._prefix = context.prefix

    def __call__(self, x: Tensor) -> Tensor:
        """Shapes: x and result `[num_tokens, hidden_size]`."""
        return self.picked(x) + self.shared(x)

    def weights(self) -> Iterator[tuple[str, WeightTarget]]:
        """Names of the checkpoint's tensors, and where they go."""
        yield from self.shared.weights()
        yield from self.picked.router.weights()
        for part in self.picked.experts.part_shapes:
            index, _, name = part.partition(".")
            expert = f"{self._prefix}.experts.{index}.{name}_proj.weight"
            yield expert, WeightTarget(self.picked.experts, part)


class DeepseekLayer:
    """Attention, then feed-forward, each behind a norm and added to the residual."""

    def __init__(
        self,
        config: ModelConfig,
        own: DeepseekConfig,
        context: LayerContext,
        layer_index: int,
        rotary: RotaryEmbedding,
    ) -> None:
        hidden_size, eps = config.hidden_size, config.rms_norm_eps
        self.input_norm = RmsNorm(context, hidden_size=hidden_size, eps=eps)
        self.attention = LatentAttention(
            config, own, context.within("self_attn"), layer_index, rotary
        )
        self.mlp_norm = RmsNorm(context, hidden_size=hidden_size, eps=eps)
        self.mlp = (
            GatedMlp(
                context.within("mlp"),
                hidden_size=hidden_size,
                intermediate_size=config.intermediate_size,
                has_bias=config.mlp_bias,
            )
            if layer_index < own.num_dense_layers
            else SharedAndPicked(config, own, context.within("mlp"))
        )
        self._prefix = context.prefix

    def __call__(
        self,
        x: Tensor,
        residual: Tensor | None,
        positions: Tensor,
        attention: AttentionInputs,
        wanted: Rows,
    ) -> tuple[Tensor, Tensor]:
        """See `chiplet.models.decoder.DecoderLayer`."""
        x, residual = self.input_norm(x, residual)
        x = self.attention(x, positions, attention, wanted)
        x, residual = self.mlp_norm(x, wanted(residual))
        return self.mlp(x), residual

    def weights(self) -> Iterator[tuple[str, WeightTarget]]:
        """Names of the checkpoint's tensors, and where they go."""
        yield from self.attention.weights()
        yield from self.mlp.weights()
        yield f"{self._prefix}.input_layernorm.weight", WeightTarget(self.input_norm, "weight")
        name = f"{self._prefix}.post_attention_layernorm.weight"
        yield name, WeightTarget(self.mlp_norm, "weight")


class DeepseekV2ForCausalLM(Decoder):
    """A model of the family: the decoder with its layers."""

    def __init__(self, config: ModelConfig, context: LayerContext) -> None:
        own = DeepseekConfig.of(config.stated)
        rotary = RotaryEmbedding(
            context,
            head_dim=own.latent.rotary_dim,
            theta=config.rope_theta,
            scaling=own.scaling,
        )
        layers = [
            DeepseekLayer(config, own, context.within(f"{LAYERS}.{index}"), index, rotary)
            for index in range(config.num_layers)
        ]
        super().__init__(config, context, layers)
