"""A layer with latent attention cut among ranks gives what a whole one gives."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from chiplet.api import BuildContext
from chiplet.config import ModelConfig
from chiplet.errors import ConfigError
from chiplet.layers.attention import AttentionInputs
from chiplet.layers.rotary import RotaryEmbedding
from chiplet.layers.rows import every_row
from chiplet.models.deepseek import DeepseekLayer
from chiplet.models.deepseek_config import DeepseekConfig, read_config
from chiplet.parallel.group import ONE_RANK, RankGroup
from chiplet.plugins.self_check.attention import make_batch
from chiplet.reference.attention import ReferenceAttention
from chiplet.testing.conformance.tiny_models import KINDS
from tests.parallel.test_sharded_layers import ReferenceBindings, context_of
from tests.parallel.threads import on_ranks

HIDDEN, HEADS, TOKENS = 24, 4, 7

CONFIG = ModelConfig(
    architecture="DeepseekV2ForCausalLM",
    vocab_size=8,
    hidden_size=HIDDEN,
    intermediate_size=16,
    num_layers=1,
    num_heads=HEADS,
    num_kv_heads=1,
    head_dim=48,
    context_length=8,
    rms_norm_eps=1e-6,
    rope_theta=10000.0,
)


class Bindings(ReferenceBindings):
    """Attention too."""

    def attention(self, request):
        return ReferenceAttention().build(request, BuildContext(None))


def attended(ranks: RankGroup, num_heads: int = HEADS, q_rank: int | None = 24) -> torch.Tensor:
    """What a layer makes of the same input with the same weights."""
    stated = read_config(
        dict(KINDS["deepseek"]) | {"num_attention_heads": num_heads, "q_lora_rank": q_rank}
    )
    own = replace(DeepseekConfig.of(stated), num_dense_layers=0)
    context = replace(context_of(ranks), bindings=Bindings())
    rotary = RotaryEmbedding(
        context, head_dim=own.latent.rotary_dim, theta=10000.0, scaling=own.scaling
    )
    layer = DeepseekLayer(replace(CONFIG, num_heads=num_heads), own, context, 0, rotary)
    random = torch.Generator().manual_seed(0)
    for _, (holder, part) in sorted(layer.weights(), key=lambda each: each[0]):
        holder.load(part, torch.randn(holder.part_shapes[part], generator=random) / 4)
    impl = layer.attention.attend.impl
    batch = make_batch(torch.tensor([[1]]), (0,), (TOKENS,), 16, torch.device("cpu"))
    (layout,) = impl.layouts()
    kv = torch.zeros(layout.shape(layer.attention.attend.request.kv, 2))
    x = torch.randn(TOKENS, HIDDEN, generator=random)
    inputs = AttentionInputs([kv], {"global": impl.plan(batch, layout)})
    return layer(x, None, batch.positions, inputs, every_row)[0]


@pytest.mark.parametrize("q_rank", [24, None])
@pytest.mark.parametrize("size", [2, 4])
def test_ranks_share_the_heads_of_latent_attention(size: int, q_rank: int | None) -> None:
    whole = attended(ONE_RANK, q_rank=q_rank)
    for each in on_ranks(size, lambda ranks: attended(ranks, q_rank=q_rank)):
        torch.testing.assert_close(each, whole, rtol=1e-4, atol=1e-4)


def test_heads_that_cannot_be_shared_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"4 .*can be shared by 1, 2, 4 ranks"):
        on_ranks(3, attended)
