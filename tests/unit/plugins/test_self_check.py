"""The comparison at start passes the reference and finds what is wrong, for every family."""

from dataclasses import replace

import pytest
import torch

from chiplet.api import (
    BuildContext,
    Coding,
    Dtype,
    Granularity,
    LinearRequest,
    MoeRequest,
    Op,
    OpRequest,
    WeightScheme,
)
from chiplet.plugins.self_check import SelfCheck
from chiplet.plugins.self_check.moe import MOST_BYTES
from chiplet.reference.attention import ReferenceAttention
from chiplet.reference.linear import ReferenceLinear
from chiplet.reference.moe import ReferenceMoe
from chiplet.reference.ops import ReferenceOps, silu_mul
from chiplet.reference.platform import ReferencePlatform
from tests.unit.plugins.test_selection import attention_request

CONTEXT = BuildContext(ReferencePlatform())
CHECK = SelfCheck(ReferencePlatform())
LINEAR = LinearRequest(
    role="o_proj", in_features=64, out_features=600, dtype=Dtype.BFLOAT16, has_bias=True
)
ATTENTION = [
    attention_request(),
    attention_request(group="window", window=4),
    attention_request(group="tree", window=4, has_tree=True),
    attention_request(group="soft", softcap=5.0, has_sinks=True),
]
MOE = MoeRequest(
    hidden_size=48,
    intermediate_size=40,
    num_experts=8,
    top_k=2,
    renormalize=True,
    dtype=Dtype.BFLOAT16,
)
CODED_MOE = replace(
    MOE,
    hidden_size=64,
    intermediate_size=32,
    scheme=WeightScheme(coding=Coding.MXFP4, granularity=Granularity.GROUP, group_size=32),
)
CODED = [
    replace(LINEAR, in_features=256, is_gated=True, scheme=WeightScheme(**scheme))
    for scheme in (
        {"coding": Coding.INT4, "granularity": Granularity.GROUP, "group_size": 32},
        {"coding": Coding.INT8, "granularity": Granularity.CHANNEL},
        {"coding": Coding.FP8_E4M3, "granularity": Granularity.BLOCK, "group_size": 128},
        {"coding": Coding.FP8_E4M3, "granularity": Granularity.TENSOR},
        {"coding": Coding.Q8_0, "granularity": Granularity.PACKED},
    )
]
OPS = [OpRequest(op=op, dtype=dtype) for op in Op for dtype in (Dtype.FLOAT32, Dtype.BFLOAT16)]


def reference(request):
    if isinstance(request, LinearRequest):
        return ReferenceLinear().build(request, CONTEXT)
    if isinstance(request, MoeRequest):
        return ReferenceMoe().build(request, CONTEXT)
    if isinstance(request, OpRequest):
        return ReferenceOps().build(request, CONTEXT)
    return ReferenceAttention().build(request, CONTEXT)


@pytest.mark.parametrize("request_", [LINEAR, *CODED, MOE, CODED_MOE, *ATTENTION, *OPS], ids=str)
def test_the_reference_is_equal_to_itself(request_):
    assert CHECK.compare(request_, reference(request_), reference(request_)) == ""


class Wrapped:
    """An implementation that spoils what another computes."""

    def __init__(self, inner, spoil):
        self.inner, self.spoil = inner, spoil

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def run(self, *arguments):
        return self.spoil(self.inner.run(*arguments))

    def run_with_sinks(self, *arguments):
        return self.spoil(self.inner.run_with_sinks(*arguments))

    def __call__(self, *arguments):
        result = self.inner(*arguments)
        return tuple(map(self.spoil, result)) if isinstance(result, tuple) else self.spoil(result)


def shifted(tensor):
    return tensor.roll(1, dims=0) + 1


def one_wrong(tensor):
    spoilt = tensor.clone()
    spoilt.view(-1)[-1] += 7
    return spoilt


def not_finite(tensor):
    return tensor / 0


@pytest.mark.parametrize("request_", [LINEAR, *CODED, MOE, CODED_MOE, *ATTENTION, *OPS], ids=str)
def test_wrong_numbers_are_found(request_):
    wrong = Wrapped(reference(request_), shifted)
    assert CHECK.compare(request_, wrong, reference(request_))


def swapped_blocks(tensor):
    spoilt = tensor.clone()
    spoilt[:, 512:528], spoilt[:, 528:544] = tensor[:, 528:544], tensor[:, 512:528]
    return spoilt


@pytest.mark.parametrize("request_", [LINEAR, *CODED], ids=str)
def test_a_block_of_outputs_out_of_place_is_found_among_repeated_rows(request_):
    ungated = replace(request_, is_gated=False)
    wrong = Wrapped(reference(ungated), swapped_blocks)
    assert "differs" in CHECK.compare(ungated, wrong, reference(ungated))


@pytest.mark.parametrize("spoil", [one_wrong, not_finite, lambda x: x.half(), lambda x: x[:, :-1]])
@pytest.mark.parametrize("request_", [LINEAR, MOE, ATTENTION[0]], ids=str)
def test_small_faults_are_found(request_, spoil):
    assert CHECK.compare(request_, Wrapped(reference(request_), spoil), reference(request_))


@pytest.mark.parametrize("change", [{"top_k": 3}, {"renormalize": False}], ids=str)
def test_another_routing_is_found(change):
    assert CHECK.compare(MOE, reference(replace(MOE, **change)), reference(MOE))


@pytest.mark.parametrize("num_experts", [8, 256])
def test_experts_too_large_to_be_made_are_checked_in_part(num_experts):
    large = replace(MOE, hidden_size=7168, intermediate_size=14336, num_experts=num_experts)
    part = CHECK.checkable(large)
    assert part.hidden_size == 7168
    assert part.num_experts == 8
    assert 3 * part.num_experts * part.hidden_size * part.intermediate_size * 2 <= MOST_BYTES
    assert replace(part, num_experts=num_experts, intermediate_size=14336) == large
    assert CHECK.checkable(MOE) is MOE


def test_too_few_of_many_picked_experts_are_not_left():
    large = replace(MOE, hidden_size=4096, intermediate_size=4096, num_experts=64, top_k=16)
    assert CHECK.checkable(large).num_experts == 32


def test_sinks_that_are_forgotten_are_found():
    request = ATTENTION[-1]
    forgetful = Wrapped(reference(request), lambda x: x)
    forgetful.run_with_sinks = lambda *arguments: forgetful.inner.run(*arguments[:-1])
    assert "differs" in CHECK.compare(request, forgetful, reference(request))


class Gated:
    """Applies its gate to a product that it spoils."""

    def __init__(self, spoil):
        self.inner, self.spoil = reference(LINEAR), spoil
        self.pack, self.run = self.inner.pack, self.inner.run

    def run_silu_mul(self, x, packed):
        return silu_mul(self.spoil(self.inner.run(x, packed)))


def test_a_gate_is_looked_at_where_it_is_asked_for():
    gated = replace(LINEAR, is_gated=True)
    assert CHECK.compare(gated, Gated(lambda x: x), reference(gated)) == ""
    swapped = Gated(lambda x: x.roll(x.shape[1] // 2, dims=1))
    assert "differs" in CHECK.compare(gated, swapped, reference(gated))
    assert CHECK.compare(LINEAR, swapped, reference(LINEAR)) == ""


def test_stray_writes_into_the_cache_are_found():
    class Strays:
        def __init__(self, inner):
            self.layouts, self.plan, self.inner = inner.layouts, inner.plan, inner

        def run(self, q, k, v, kv, plan):
            out = self.inner.run(q, k, v, kv, plan)
            kv[1, :, -1] = 3
            return out

    request = ATTENTION[0]
    assert "differs" in CHECK.compare(request, Strays(reference(request)), reference(request))


def test_one_that_raises_or_gives_too_much():
    def raises(*arguments):
        raise torch.OutOfMemoryError("too large")

    request = OpRequest(op=Op.SILU_MUL, dtype=Dtype.FLOAT32)
    assert "too large" in CHECK.compare(request, raises, reference(request))
    twice = Wrapped(lambda x: (x, x), lambda x: x)
    assert "gave 2 results" in CHECK.compare(request, twice, reference(request))
