"""The Llama family: Llama 2 and 3, Mistral, Mixtral, SmolLM2, Qwen3, dense or of experts.

Source: arXiv:2302.13971 (architecture), arXiv:2310.06825 (sliding window), arXiv:2401.04088
(experts), arXiv:2505.09388 (norms of queries and keys).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torch import Tensor

from chiplet.api import StretchRequest
from chiplet.config import ModelConfig
from chiplet.layers.attention import AttentionInputs, PagedAttention
from chiplet.layers.context import LayerContext
from chiplet.layers.linear import Linear
from chiplet.layers.mlp import GatedMlp
from chiplet.layers.moe import SparseMlp
from chiplet.layers.norm import HeadNorm, RmsNorm
from chiplet.layers.rotary import RotaryEmbedding
from chiplet.layers.rows import Rows
from chiplet.layers.weights import WeightTarget
from chiplet.models.decoder import LAYERS, Decoder
from chiplet.models.stretched import StretchedLayer
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
                "q_proj": config.num_heads * config.head_dim,
                "k_proj": config.num_kv_heads * config.head_dim,
                "v_proj": config.num_kv_heads * config.head_dim,
            },
            has_bias=config.attention_bias,
            shard=Shard.OUTPUT,
            unit=config.head_dim,
        )
        self.o_proj = Linear(
            context,
            "o_proj",
            in_features=config.num_heads * config.head_dim,
            parts={"o_proj": config.hidden_size},
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

    def __call__(
        self, x: Tensor, positions: Tensor, attention: AttentionInputs, wanted: Rows
    ) -> Tensor:
        """Shapes: x `[num_tokens, hidden_size]`; returns `[num_wanted, hidden_size]`."""
        return self.o_proj(wanted(self.attended(self.qkv_proj(x), positions, attention)))

    def attended(self, qkv: Tensor, positions: Tensor, attention: AttentionInputs) -> Tensor:
        """What lies between the projections.

        Shapes: qkv `[num_tokens, out_features of qkv_proj]`; returns `[num_tokens, in_features of
        o_proj]`.
        """
        q, k, v = self.attend.split(qkv)
        if self.norms:
            q, k = self.norms["q_norm"](q), self.norms["k_norm"](k)
        q, k = self._rotary(q, k, positions)
        return self.attend(q, k, v, attention).flatten(1)


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
        self.attention = LlamaAttention(config, context.within("self_attn"), layer_index, rotary)
        self.mlp_norm = RmsNorm(context, hidden_size=hidden_size, eps=eps)
        self.mlp = _make_mlp(config, context)
        self._name = context.prefix
        self._expert_names = EXPERT_NAMES.get(config.architecture, EXPERT_NAMES[""])

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

    def begin(self, x: Tensor) -> Tensor:
        """See `chiplet.models.stretched.StretchedLayer`."""
        return self.attention.qkv_proj(self.input_norm(x, None)[0])

    def stretch_to(
        self, following: StretchedLayer | None, num_tokens: int
    ) -> StretchRequest | None:
        """See `chiplet.models.stretched.StretchedLayer`."""
        if not (following is None or isinstance(following, LlamaLayer)):
            return None
        if not isinstance(self.mlp, GatedMlp):
            return None
        layers = [self.attention.o_proj, self.mlp.gate_up_proj, self.mlp.down_proj]
        if following is not None:
            layers.append(following.attention.qkv_proj)
        products = [each.product(num_tokens) for each in layers]
        if None in products:
            return None
        out, gate_up, down, *rest = (each for each in products if each is not None)
        return StretchRequest(
            out=out,
            gate_up=gate_up,
            down=down,
            following=rest[0] if rest else None,
            norm=self.mlp_norm.weight,
            following_norm=None if following is None else following.input_norm.weight,
            eps=self.mlp_norm.eps,
        )

    def weights(self) -> Iterator[tuple[str, WeightTarget]]:
        """Names of the checkpoint's tensors, and where they go."""
        yield from self.attention.qkv_proj.weights()
        yield from self.attention.o_proj.weights()
        norms: dict[str, RmsNorm | HeadNorm] = {
            "input_layernorm": self.input_norm,
            "post_attention_layernorm": self.mlp_norm,
            **{f"self_attn.{name}": norm for name, norm in self.attention.norms.items()},
        }
        for name, norm in norms.items():
            yield f"{self._name}.{name}.weight", WeightTarget(norm, "weight")
        if isinstance(self.mlp, GatedMlp):
            yield from self.mlp.weights()
        else:
            yield from self._expert_weights(self.mlp)

    def _expert_weights(self, mlp: SparseMlp) -> Iterator[tuple[str, WeightTarget]]:
        yield from mlp.router.weights()
        names = self._expert_names
        for part in mlp.experts.part_shapes:
            index, _, name = part.partition(".")
            expert = f"{self._name}.{names.block}.experts.{index}"
            yield f"{expert}.{names.parts[name]}.weight", WeightTarget(mlp.experts, part)


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
        block = EXPERT_NAMES.get(config.architecture, EXPERT_NAMES[""]).block
        return SparseMlp(
            context.within(block), hidden_size=config.hidden_size, experts=config.experts
        )
    return GatedMlp(
        context.within("mlp"),
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        has_bias=config.mlp_bias,
    )


class LlamaForCausalLM(Decoder):
    """A model of the family: the decoder with its layers."""

    def __init__(self, config: ModelConfig, context: LayerContext) -> None:
        rotary = RotaryEmbedding(
            context,
            head_dim=config.head_dim,
            theta=config.rope_theta,
            scaling=config.rope_scaling,
        )
        layers = [
            LlamaLayer(config, context.within(f"{LAYERS}.{layer_index}"), layer_index, rotary)
            for layer_index in range(config.num_layers)
        ]
        super().__init__(config, context, layers)
