"""PagedAttention: what a model file can ask for, and where sinks go."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from chiplet.api import AttentionRequest, BuildContext, Dtype
from chiplet.errors import ModelError
from chiplet.layers.attention import (
    AttentionInputs,
    AttentionVariant,
    PagedAttention,
    check_groups,
)
from chiplet.layers.context import LayerContext
from chiplet.parallel.group import RankGroup
from chiplet.plugins.self_check.attention import make_batch
from chiplet.reference.attention import ReferenceAttention
from chiplet.reference.platform import ReferencePlatform

HEADS, KV_HEADS, HEAD_DIM, TOKENS = 4, 2, 16, 5


@dataclass
class Answers:
    """Bindings that give the reference."""

    asked: list[AttentionRequest] = field(default_factory=list[AttentionRequest])

    def attention(self, request: AttentionRequest) -> Any:
        self.asked.append(request)
        return ReferenceAttention().build(request, BuildContext(ReferencePlatform()))


def layer_of(ranks: RankGroup | None = None, **options: Any) -> PagedAttention:
    context = LayerContext(
        bindings=Answers(),  # type: ignore[arg-type]
        dtype=Dtype.FLOAT32,
        kv_dtype=Dtype.FLOAT32,
        page_size=16,
        max_positions=64,
        device=torch.device("cpu"),
        ranks=ranks or RankGroup(),
    )
    return PagedAttention(
        context, 0, num_heads=HEADS, num_kv_heads=KV_HEADS, head_dim=HEAD_DIM, **options
    )


def attend(layer: PagedAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    spec, layout = layer.request.kv, layer.impl.layouts()[0]
    table = torch.ones(1, 1, dtype=torch.int32)
    batch = make_batch(table, (0,), (TOKENS,), spec.page_size, torch.device("cpu"))
    kv = torch.zeros(layout.shape(spec, 2))
    plans = {layer.request.group: layer.impl.plan(batch, layout)}
    return layer(q, k, v, AttentionInputs([kv], plans))


def expected(q: Tensor, k: Tensor, v: Tensor, scale: float, cap: float, sinks: Tensor) -> Tensor:
    keys, values = (each.repeat_interleave(HEADS // KV_HEADS, dim=1) for each in (k, v))
    scores = torch.einsum("ihd,jhd->hij", q, keys) * scale
    scores = cap * torch.tanh(scores / cap)
    scores = scores.masked_fill(torch.ones(TOKENS, TOKENS).triu(1).bool(), -torch.inf)
    with_sinks = torch.cat([scores, sinks[:, None, None].expand(-1, TOKENS, 1)], dim=2)
    return torch.einsum("hij,jhd->ihd", with_sinks.softmax(2)[:, :, :-1], values)


def random_heads(num_heads: int) -> Tensor:
    return torch.randn(TOKENS, num_heads, HEAD_DIM) * 2


def test_scale_softcap_and_sinks_reach_the_numbers() -> None:
    torch.manual_seed(0)
    layer = layer_of(variant=AttentionVariant(scale=0.5, softcap=3.0, has_sinks=True))
    assert layer.part_shapes == {"sinks": (HEADS,)}
    sinks = torch.randn(HEADS)
    layer.load("sinks", sinks)
    q, k, v = random_heads(HEADS), random_heads(KV_HEADS), random_heads(KV_HEADS)
    torch.testing.assert_close(attend(layer, q, k, v), expected(q, k, v, 0.5, 3.0, sinks))
    other = layer_of(variant=AttentionVariant(scale=0.5, softcap=3.0, has_sinks=True))
    assert other.adopt(layer)
    torch.testing.assert_close(attend(other, q, k, v), attend(layer, q, k, v))


def test_plain_layers_ask_as_ever() -> None:
    request = layer_of().request
    assert (request.group, request.scale) == ("global", HEAD_DIM**-0.5)
    assert (request.softcap, request.has_sinks) == (None, False)
    assert layer_of(window=8).request.group == "window"
    assert layer_of().part_shapes == {}


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_has_the_sinks_of_its_heads(rank: int) -> None:
    ranks = RankGroup(size=2, local_ranks=(rank,))
    layer = layer_of(ranks, variant=AttentionVariant(has_sinks=True))
    layer.load("sinks", torch.arange(4.0))
    assert layer._sinks is not None
    assert layer._sinks.tolist() == [[0.0, 1.0], [2.0, 3.0]][rank]


def test_unlike_layers_need_groups_of_their_own() -> None:
    plain, capped = layer_of(), layer_of(variant=AttentionVariant(softcap=3.0))
    with pytest.raises(ModelError, match="group 'global' ask for different things"):
        check_groups([plain, capped])
    named = layer_of(variant=AttentionVariant(group="capped", softcap=3.0))
    check_groups([plain, named, layer_of(), layer_of(window=8)])
