"""Layers cut among ranks give what whole ones give."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import pytest
import torch

from chiplet.api import BuildContext, Coding, Dtype, Granularity, WeightScheme
from chiplet.config import ExpertsConfig
from chiplet.errors import ConfigError, ModelError
from chiplet.layers.context import LayerContext
from chiplet.layers.embedding import Embedding
from chiplet.layers.linear import Linear
from chiplet.layers.moe import SparseMlp
from chiplet.parallel.group import ONE_RANK, RankGroup
from chiplet.parallel.sharding import (
    Cut,
    Shard,
    cut_evenly,
    cut_or_repeat,
    cut_padded,
    share_or_repeat,
)
from chiplet.parallel.trees import join_trees
from chiplet.reference.linear import ReferenceLinear
from chiplet.reference.moe import ReferenceMoe
from chiplet.reference.ops import REFERENCE_OPS
from chiplet.reference.quantization import dequantize, random_weights
from tests.parallel.threads import on_ranks


class ReferenceBindings:
    """The reference for everything."""

    def linear(self, request):
        return ReferenceLinear().build(request, BuildContext(None))

    def moe(self, request):
        return ReferenceMoe().build(request, BuildContext(None))

    def op(self, request):
        return REFERENCE_OPS[request.op]


def context_of(ranks: RankGroup) -> LayerContext:
    return LayerContext(
        bindings=ReferenceBindings(),
        dtype=Dtype.FLOAT32,
        kv_dtype=Dtype.FLOAT32,
        page_size=16,
        max_positions=8,
        device=torch.device("cpu"),
        ranks=ranks,
    )


def make_linear(ranks: RankGroup, shard: Shard, *, has_bias: bool = False) -> Linear:
    layer = Linear(
        context_of(ranks),
        "test",
        in_features=12,
        parts={"weight": 20} if shard is Shard.GATHERED else {"a": 8, "b": 4},
        has_bias=has_bias,
        shard=shard,
    )
    random = torch.Generator().manual_seed(0)
    for part, shape in layer.part_shapes.items():
        layer.load(part, torch.randn(shape, generator=random))
    return layer


X = torch.randn(5, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("size", [2, 4])
def test_sliced_outputs_joined_are_the_whole(size, has_bias):
    whole = make_linear(ONE_RANK, Shard.OUTPUT, has_bias=has_bias)(X)
    slices = on_ranks(size, lambda ranks: make_linear(ranks, Shard.OUTPUT, has_bias=has_bias)(X))
    a = torch.cat([each[:, : 8 // size] for each in slices], dim=1)
    b = torch.cat([each[:, 8 // size :] for each in slices], dim=1)
    torch.testing.assert_close(torch.cat([a, b], dim=1), whole)


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("size", [2, 3])
def test_sliced_inputs_are_summed(size, has_bias):
    whole = make_linear(ONE_RANK, Shard.INPUT, has_bias=has_bias)(X)

    def work(ranks: RankGroup):
        width = 12 // size
        mine = X[:, ranks.local_ranks[0] * width :][:, :width]
        return make_linear(ranks, Shard.INPUT, has_bias=has_bias)(mine)

    for each in on_ranks(size, work):
        torch.testing.assert_close(each, whole)


@pytest.mark.parametrize("size", [2, 3, 7])
def test_gathered_outputs_may_divide_unevenly(size):
    whole = make_linear(ONE_RANK, Shard.GATHERED)(X)
    for each in on_ranks(size, lambda ranks: make_linear(ranks, Shard.GATHERED)(X)):
        torch.testing.assert_close(each, whole)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_embedding_finds_rows_wherever_they_are(size):
    table = torch.randn(10, 6, generator=torch.Generator().manual_seed(2))
    token_ids = torch.tensor([0, 9, 4, 5, 3, 9], dtype=torch.int32)

    def work(ranks: RankGroup):
        layer = Embedding(context_of(ranks), vocab_size=10, hidden_size=6)
        layer.load("weight", table)
        return layer(token_ids)

    for each in on_ranks(size, work):
        assert torch.equal(each, table[token_ids.long()])


@pytest.mark.parametrize("size", [2, 4])
def test_slices_of_experts_are_summed(size):
    experts = ExpertsConfig(num_experts=3, intermediate_size=8, top_k=2, renormalize=True)

    def work(ranks: RankGroup):
        layer = SparseMlp(context_of(ranks), hidden_size=12, experts=experts)
        random = torch.Generator().manual_seed(0)
        for holder in (layer.router, layer.experts):
            for part, shape in holder.part_shapes.items():
                holder.load(part, torch.randn(shape, generator=random))
        return layer(X)

    whole = work(ONE_RANK)
    for each in on_ranks(size, work):
        torch.testing.assert_close(each, whole)


def test_one_process_joins_what_each_of_its_ranks_holds():
    joined = []

    def join(shards):
        joined.append(list(shards))
        return shards[0]

    ranks = RankGroup(size=2, local_ranks=(0, 1), join_shards=join)
    layer = make_linear(ranks, Shard.OUTPUT)
    whole = make_linear(ONE_RANK, Shard.OUTPUT)._products[0].packed.weight
    assert layer.part_shapes == {"a": (8, 12), "b": (4, 12)}
    ((first, second),) = joined
    assert torch.equal(torch.cat([first[:4], second[:4], first[4:], second[4:]]), whole)


def test_heads_are_repeated_where_ranks_outnumber_them():
    assert share_or_repeat(2, 4, "heads") == 1
    assert cut_or_repeat(16, 4, "heads", dim=0, unit=8).starts == (0, 0, 8, 8)
    assert cut_or_repeat(64, 4, "heads", dim=0, unit=8).starts == (0, 16, 32, 48)


@pytest.mark.parametrize("count", [3, 6])
def test_heads_that_cannot_be_shared_are_refused(count):
    with pytest.raises(ConfigError, match="tensor-parallel-size is 4"):
        share_or_repeat(count, 4, "heads")
    with pytest.raises(ConfigError, match="can be shared by"):
        cut_evenly(count * 8, 4, "heads", dim=0, unit=8)


def test_padding_of_the_last_rank_is_zero():
    cut = cut_padded(5, 4, dim=0)
    parts = [cut.take(torch.arange(1, 6), rank).tolist() for rank in range(4)]
    assert parts == [[1, 2], [3, 4], [5, 0], [0, 0]]


def test_a_cut_of_coded_elements_falls_between_steps():
    coded = torch.arange(8).reshape(2, 4)  # four steps code 16 elements of a row
    assert Cut(1, 16, 8, (0, 8)).take(coded, 1).tolist() == [[2, 3], [6, 7]]
    with pytest.raises(ModelError, match="cannot be cut"):
        Cut(1, 16, 2, tuple(range(0, 16, 2))).take(coded, 1)


class _Named(NamedTuple):
    weight: torch.Tensor
    bias: torch.Tensor | None


@dataclass(frozen=True)
class _Coded:
    parts: list[_Named]
    group: int


def test_trees_are_joined_leaf_by_leaf():
    def tree(value: float, group: int = 8) -> dict[str, _Coded]:
        return {"x": _Coded([_Named(torch.tensor([value]), None)], group)}

    joined = join_trees([tree(1.0), tree(2.0)], torch.cat)
    assert isinstance(joined["x"].parts[0], _Named)
    assert joined["x"].parts[0].weight.tolist() == [1.0, 2.0]
    assert joined["x"].group == 8
    with pytest.raises(TypeError, match="differ in a int"):
        join_trees([tree(1.0), tree(2.0, 16)], torch.cat)


def test_squares_of_weights_are_made_plain_before_they_are_cut():
    """96 rows of each rank begin within a square of 128."""
    scheme = WeightScheme(coding=Coding.FP8_E4M3, granularity=Granularity.BLOCK, group_size=128)
    weights = random_weights(scheme, (192, 12), torch.Generator().manual_seed(0), 1.0)
    parts = []
    for rank in range(2):
        context = replace(
            context_of(RankGroup(size=2, local_ranks=(rank,))), stored={"a.weight": scheme}
        )
        layer = Linear(context, "test", in_features=12, parts={"a": 192}, shard=Shard.OUTPUT)
        layer.load("a", weights)
        parts.append(layer(X))
    torch.testing.assert_close(torch.cat(parts, dim=1), X @ dequantize(weights).T)
