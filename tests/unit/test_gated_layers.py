"""Layers whose product applies a gate: who is asked, on whole layers and on slices of them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import torch

from chiplet.api import BuildContext, Coding, Dtype, Granularity, LinearRequest, WeightScheme
from chiplet.layers.context import LayerContext
from chiplet.layers.mlp import GatedMlp
from chiplet.parallel.group import ONE_RANK, RankGroup
from chiplet.reference.linear import PlainLinear, ReferenceLinear
from chiplet.reference.ops import silu_mul
from chiplet.reference.platform import ReferencePlatform
from chiplet.reference.quantization import random_weights

CONTEXT = BuildContext(ReferencePlatform())
X = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))


class Interleaved(PlainLinear):
    """Keeps neighbours of gate and up together, as a kernel would that has both in one program."""

    def pack(self, weights):
        return replace(weights, weight=weights.weight.unflatten(0, (2, -1)).transpose(0, 1))

    def run(self, x, packed):
        return self._halves(x, packed).transpose(0, 1).flatten(1)

    def run_silu_mul(self, x, packed):
        gate, up = self._halves(x, packed)
        return torch.nn.functional.silu(gate) * up

    @staticmethod
    def _halves(x, packed):
        halves = torch.einsum("mk,nhk->hmn", x, packed.weight)
        return halves if packed.bias is None else halves + packed.bias.unflatten(0, (2, 1, -1))


@dataclass
class Bindings:
    """One implementation for layers with a gate, another for all else; counts operations."""

    gated: type
    requests: list[LinearRequest] = field(default_factory=list)
    num_operations: int = 0

    def serves(self, request):
        return True

    def linear(self, request):
        self.requests.append(request)
        return self.gated() if request.is_gated else ReferenceLinear().build(request, CONTEXT)

    def op(self, request):
        def counted(gate_up):
            self.num_operations += 1
            return silu_mul(gate_up)

        return counted


def make_mlp(gated: type, ranks: RankGroup = ONE_RANK, **others) -> tuple[GatedMlp, Bindings]:
    bindings = Bindings(gated)
    context = LayerContext(
        bindings=bindings,
        dtype=Dtype.FLOAT32,
        kv_dtype=Dtype.FLOAT32,
        page_size=16,
        max_positions=8,
        device=torch.device("cpu"),
        ranks=ranks,
        **others,
    )
    mlp = GatedMlp(context, hidden_size=64, intermediate_size=32, has_bias=True)
    random = torch.Generator().manual_seed(0)
    for layer in (mlp.gate_up_proj, mlp.down_proj):
        for part, shape in layer.part_shapes.items():
            plain = torch.randn(shape, generator=random)
            scheme = others.get("stored", {}).get(f"{part}.weight")
            layer.load(part, random_weights(scheme, shape, random, 1.0) if scheme else plain)
    return mlp, bindings


def test_an_implementation_with_a_gate_applies_it():
    plain, with_operation = make_mlp(PlainLinear)
    fused, without = make_mlp(Interleaved)
    torch.testing.assert_close(fused(X), plain(X))
    assert (with_operation.num_operations, without.num_operations) == (1, 0)
    gate_up, down = without.requests
    assert gate_up.is_gated
    assert not down.is_gated
    torch.testing.assert_close(fused.gate_up_proj(X), plain.gate_up_proj(X))


@pytest.mark.parametrize("rank", [0, 1])
def test_each_rank_applies_the_gate_to_its_own_slice(rank):
    whole, _ = make_mlp(PlainLinear)
    sliced, _ = make_mlp(Interleaved, RankGroup(size=2, local_ranks=(rank,)))
    mine = slice(16 * rank, 16 * rank + 16)
    expected = whole.gate_up_proj.gated(silu_mul)(X)[:, mine]
    torch.testing.assert_close(sliced.gate_up_proj.gated(silu_mul)(X), expected)


def test_parts_in_two_codings_are_two_products_and_the_operation():
    scheme = WeightScheme(coding=Coding.INT8, granularity=Granularity.CHANNEL)
    mlp, bindings = make_mlp(PlainLinear, stored={"up_proj.weight": scheme})
    assert [each.is_gated for each in bindings.requests] == [False, False, False]
    assert mlp(X).shape == X.shape
    assert bindings.num_operations == 1
