"""Layers whose weights stay in the coding of their checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import torch

from chiplet.api import (
    BuildContext,
    Coding,
    Dtype,
    Granularity,
    LinearRequest,
    LinearWeights,
    WeightScheme,
)
from chiplet.formats.quantization.int8 import Int8Channels
from chiplet.layers.context import LayerContext
from chiplet.layers.embedding import Embedding
from chiplet.layers.linear import Linear
from chiplet.parallel.sharding import Shard
from chiplet.reference.linear import ReferenceLinear
from chiplet.reference.ops import REFERENCE_OPS
from chiplet.reference.quantization import dequantize, random_weights

X = torch.randn(5, 256, generator=torch.Generator().manual_seed(1))


def blocks(coding: Coding) -> WeightScheme:
    return WeightScheme(coding=coding, granularity=Granularity.PACKED)


Q4, Q6, Q8 = blocks(Coding.Q4_K), blocks(Coding.Q6_K), blocks(Coding.Q8_0)


@dataclass
class Bindings:
    """The reference for everybody; says of the given schemes that a faster one serves them."""

    served: frozenset[WeightScheme]
    requests: list[LinearRequest] = field(default_factory=list)

    def serves(self, request: LinearRequest) -> bool:
        return request.scheme in self.served

    def linear(self, request: LinearRequest):
        self.requests.append(request)
        return ReferenceLinear().build(request, BuildContext(None))

    def op(self, request):
        return REFERENCE_OPS[request.op]


def context_of(
    stored: dict[str, WeightScheme], *, served: frozenset[WeightScheme] = frozenset({Q4, Q6, Q8})
) -> LayerContext:
    return LayerContext(
        bindings=Bindings(served),
        dtype=Dtype.FLOAT32,
        kv_dtype=Dtype.FLOAT32,
        page_size=16,
        max_positions=8,
        device=torch.device("cpu"),
        stored=stored,
        prefix="model.layers.3",
    )


def make_weights(scheme: WeightScheme, num_rows: int, seed: int) -> LinearWeights:
    return random_weights(scheme, (num_rows, 256), torch.Generator().manual_seed(seed), 0.05)


PARTS = {"q_proj": 32, "k_proj": 16, "v_proj": 16}


@pytest.mark.parametrize(
    ("schemes", "served", "expected"),
    [
        ((Q4, Q4, Q4), {Q4}, [(Q4, 64)]),
        ((Q4, Q4, Q6), {Q4, Q6}, [(Q4, 48), (Q6, 16)]),
        ((Q4, Q6, Q4), {Q4, Q6}, [(Q4, 32), (Q6, 16), (Q4, 16)]),
        ((Q4, Q4, Q6), {Q4}, [(Q4, 48), (None, 16)]),
        ((Q4, Q4, Q4), set(), [(None, 64)]),
        ((Q4, None, Q4), {Q4}, [(Q4, 32), (None, 16), (Q4, 16)]),
    ],
)
@pytest.mark.parametrize("has_bias", [False, True])
def test_parts_of_any_codings_are_stacked(schemes, served, expected, has_bias):
    stored = {
        f"model.layers.3.self_attn.{part}.weight": scheme
        for part, scheme in zip(PARTS, schemes, strict=True)
        if scheme
    }
    context = context_of(stored, served=frozenset(served)).within("self_attn")
    layer = Linear(context, "qkv_proj", in_features=256, parts=PARTS, has_bias=has_bias)
    asked = [(each.scheme, each.out_features) for each in context.bindings.requests]
    assert asked == expected
    weights = {
        part: make_weights(scheme or Q8, PARTS[part], seed)
        for seed, (part, scheme) in enumerate(zip(PARTS, schemes, strict=True))
    }
    plain = {part: dequantize(each) for part, each in weights.items()}
    bias = {part: torch.full((width,), 0.5 * width) for part, width in PARTS.items()}
    # In another order than that of the stack.
    for part, scheme in reversed(list(zip(PARTS, schemes, strict=True))):
        layer.load(part, weights[part] if scheme else plain[part])
        if has_bias:
            layer.load(f"{part}.bias", bias[part])
    exact = X @ torch.cat(list(plain.values())).t()
    exact += torch.cat(list(bias.values())) if has_bias else 0
    torch.testing.assert_close(layer(X), exact)
    names = [name for name, _ in layer.weights()]
    assert names[0] == "model.layers.3.self_attn.q_proj.weight"
    assert ("model.layers.3.self_attn.v_proj.bias" in names) == has_bias


def test_a_coding_gives_way_to_what_was_asked_for():
    name = "model.layers.3.o_proj.weight"
    context = replace(context_of({name: Q4}), quantization=Int8Channels())
    layer = Linear(context, "o_proj", in_features=256, parts={"o_proj": 16})
    assert context.bindings.requests[0].scheme.coding is Coding.INT8
    weights = make_weights(Q4, 16, 0)
    layer.load("o_proj", weights)
    exact = X @ dequantize(weights).t()
    assert (layer(X) - exact).square().mean() < 4e-4 * exact.square().mean()


def test_a_coding_whose_blocks_do_not_divide_the_input_is_dequantized():
    context = context_of({"model.layers.3.o_proj.weight": Q4})
    Linear(context, "o_proj", in_features=128, parts={"o_proj": 16})
    assert context.bindings.requests[0].scheme is None


@pytest.mark.parametrize("is_served", [True, False])
@pytest.mark.parametrize("is_tied", [True, False])
def test_an_embedding_keeps_its_coding(is_tied, is_served):
    stored = {"model.layers.3.embed_tokens.weight": Q8}
    context = context_of(stored, served=frozenset({Q8} if is_served else ()))
    head = None
    if is_tied:
        head = Linear(
            context.giving_rows(),
            "lm_head",
            in_features=256,
            parts={"embed_tokens": 40},
            shard=Shard.GATHERED,
        )
    layer = Embedding(context, vocab_size=40, hidden_size=256, head=head)
    weights = make_weights(Q8, 40, 2)
    targets = [*layer.weights(), *(head.weights() if head else ())]
    assert {name for name, _ in targets} == set(stored)
    # A table that stays in its coding is there once.
    assert len(targets) == (2 if is_tied and not is_served else 1)
    for _, (holder, part) in targets:
        assert holder.part_shapes[part] == weights.shape
        holder.load(part, weights)
    token_ids = torch.tensor([3, 39, 0, 3], dtype=torch.int32)
    assert torch.equal(layer(token_ids), dequantize(weights)[token_ids.long()])
    if head is not None:
        torch.testing.assert_close(head(X), X @ dequantize(weights).t())
    kept = [each.scheme for each in context.bindings.requests if each.gives_rows]
    assert kept == ([Q8] if is_served else [])
