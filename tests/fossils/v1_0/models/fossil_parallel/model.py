from collections.abc import Sequence

from torch import Tensor

from fossil_parallel.config import ParallelConfig

from chiplet.api import ForwardBatch
from chiplet.modeling import (
    AttentionInputs,
    Embedding,
    GatedMlp,
    LayerContext,
    Linear,
    ModelConfig,
    PagedAttention,
    RmsNorm,
    RotaryEmbedding,
    Shard,
    WeightMap,
    WeightTarget,
)


class ParallelLayer:
    """x + scale * (attention(norm(x)) + mlp(norm(x)))."""

    def __init__(
        self, config: ModelConfig, context: LayerContext, index: int, rotary: RotaryEmbedding
    ) -> None:
        self.norm = RmsNorm(context, hidden_size=config.hidden_size, eps=config.rms_norm_eps)
        heads, kv_heads = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        # One product for three tensors of the checkpoint; each rank has whole heads.
        self.qkv_proj = Linear(
            context,
            "qkv_proj",
            in_features=config.hidden_size,
            parts={"q": heads, "k": kv_heads, "v": kv_heads},
            shard=Shard.OUTPUT,
            unit=config.head_dim,
        )
        self.o_proj = Linear(
            context,
            "o_proj",
            in_features=heads,
            parts={"weight": config.hidden_size},
            shard=Shard.INPUT,
            unit=config.head_dim,
        )
        self.attend = PagedAttention(
            context,
            index,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
        )
        self.mlp = GatedMlp(
            context,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            has_bias=False,
        )
        self._rotary = rotary
        self._scale = ParallelConfig.of(config.stated).branch_scale

    def __call__(self, x: Tensor, batch: ForwardBatch, attention: AttentionInputs) -> Tensor:
        """Shapes: x and result `[num_tokens, hidden_size]`."""
        y, _ = self.norm(x, None)
        q, k, v = self.attend.split(self.qkv_proj(y))
        q, k = self._rotary(q, k, batch.positions)
        attended = self.o_proj(self.attend(q, k, v, attention).flatten(1))
        return x + self._scale * (attended + self.mlp(y))


class FossilParallelForCausalLM:
    """Embedding, layers, norm, head."""

    def __init__(self, config: ModelConfig, context: LayerContext) -> None:
        sizes = {"vocab_size": config.vocab_size, "hidden_size": config.hidden_size}
        rotary = RotaryEmbedding(
            context, head_dim=config.head_dim, theta=config.rope_theta, scaling=config.rope_scaling
        )
        self.embedding = Embedding(context, **sizes)
        self.layers = [
            ParallelLayer(config, context, index, rotary) for index in range(config.num_layers)
        ]
        self.norm = RmsNorm(context, hidden_size=config.hidden_size, eps=config.rms_norm_eps)
        self.lm_head = Linear(
            context,
            "lm_head",
            in_features=config.hidden_size,
            parts={"weight": config.vocab_size},
            shard=Shard.GATHERED,
        )

    def forward(self, batch: ForwardBatch, attention: AttentionInputs) -> Tensor:
        """Logits at the batch's `logit_rows`, `[num_logit_rows, vocab_size]`."""
        x = self.embedding(batch.token_ids)
        for layer in self.layers:
            x = layer(x, batch, attention)
        x, _ = self.norm(x, None)
        return self.lm_head(x[batch.logit_rows])

    def attention_layers(self) -> Sequence[PagedAttention]:
        """Layers that own pages, in order."""
        return [layer.attend for layer in self.layers]

    def weight_map(self) -> WeightMap:
        """Where each tensor of the checkpoint goes; one that is missing or left over is an error."""
        names: dict[str, tuple[WeightTarget, ...]] = {
            "embed.weight": (WeightTarget(self.embedding, "weight"),),
            "norm.weight": (WeightTarget(self.norm, "weight"),),
            "head.weight": (WeightTarget(self.lm_head, "weight"),),
        }
        for index, layer in enumerate(self.layers):
            for name, holder, part in (
                ("norm", layer.norm, "weight"),
                ("q", layer.qkv_proj, "q"),
                ("k", layer.qkv_proj, "k"),
                ("v", layer.qkv_proj, "v"),
                ("o", layer.o_proj, "weight"),
                ("gate", layer.mlp.gate_up_proj, "gate_proj"),
                ("up", layer.mlp.gate_up_proj, "up_proj"),
                ("down", layer.mlp.down_proj, "down_proj"),
            ):
                names[f"layers.{index}.{name}.weight"] = (WeightTarget(holder, part),)
        return names
