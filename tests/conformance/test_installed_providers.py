"""Every provider that is installed, on every device found, against the reference."""

import itertools

import pytest
import torch

from chiplet.api import (
    AttentionRequest,
    Dtype,
    KvSpec,
    LinearRequest,
    MoeRequest,
    Op,
    OpRequest,
    Yes,
)
from chiplet.config import DeviceOptions
from chiplet.plugins import choose_device, discover, probe_all
from chiplet.plugins.candidates import build_context, gather_candidates
from chiplet.testing.conformance import (
    ATTENTION_CASES,
    WEIGHT_SCHEMES,
    MoeLoad,
    OpSize,
    check_attention,
    check_layout,
    check_linear,
    check_moe,
    check_op,
)

PLUGINS = discover(DeviceOptions())
FOUND = {each.device_type for result in probe_all(PLUGINS.platforms) for each in result.devices}
DEVICE_TYPES = ["reference", *sorted(FOUND)]


@pytest.fixture(scope="module", params=DEVICE_TYPES)
def chosen(request):
    return choose_device(PLUGINS, DeviceOptions(device=request.param))


@pytest.fixture(scope="module")
def context(chosen, candidates):
    return build_context(chosen.platform, candidates)


@pytest.fixture(scope="module")
def candidates(chosen):
    return gather_candidates(PLUGINS, chosen.probe, explicit=frozenset())


def attention_request(dtype=Dtype.FLOAT32, page_size=16, window=None, heads=(6, 2), head_dim=32):
    num_heads, num_kv_heads = heads
    return AttentionRequest(
        group="global" if window is None else "window",
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        scale=0.2,
        dtype=dtype,
        kv=KvSpec(num_kv_heads=num_kv_heads, head_dim=head_dim, page_size=page_size, dtype=dtype),
        window=window,
    )


@pytest.mark.parametrize("dtype", list(Dtype))
@pytest.mark.parametrize("case", ATTENTION_CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_attention_matches_the_reference(candidates, context, case, dtype):
    request = attention_request(dtype)
    served = [
        check_attention(each.provider, request, context, case) for each in candidates["attention"]
    ]
    assert any(served)


@pytest.mark.parametrize("case", ATTENTION_CASES, ids=lambda case: case.name.replace(" ", "-"))
@pytest.mark.parametrize("window", [1, 20])
def test_window(candidates, context, case, window):
    request = attention_request(window=window)
    for each in candidates["attention"]:
        check_attention(each.provider, request, context, case)


@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize("heads", [(1, 1), (4, 4), (8, 1)], ids=str)
def test_head_counts_and_page_sizes(candidates, context, heads, page_size):
    request = attention_request(page_size=page_size, heads=heads, head_dim=16)
    for each, case in itertools.product(candidates["attention"], ATTENTION_CASES[:-1]):
        check_attention(each.provider, request, context, case)


@pytest.mark.parametrize("dtype", list(Dtype))
def test_sharp_scores(candidates, context, dtype):
    request = attention_request(dtype)
    for each, case in itertools.product(candidates["attention"], ATTENTION_CASES[:-1]):
        check_attention(each.provider, request, context, case, score_scale=30.0)


@pytest.mark.parametrize("dtype", list(Dtype))
@pytest.mark.parametrize("page_size", [1, 16])
def test_layouts_keep_pages(candidates, context, dtype, page_size):
    request = attention_request(dtype, page_size)
    serving = [
        each.provider
        for each in candidates["attention"]
        if isinstance(each.provider.assess(request), Yes)
    ]
    assert serving
    for provider in serving:
        for layout in provider.build(request, context).layouts():
            check_layout(layout, request.kv, context.torch_device)


@pytest.mark.parametrize("dtype", list(Dtype))
@pytest.mark.parametrize("num_tokens", [1, 7, 129])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("shape", [(64, 96), (100, 33)], ids=str)
def test_linear_matches_the_reference(candidates, context, shape, has_bias, num_tokens, dtype):
    request = LinearRequest(
        role="test", in_features=shape[0], out_features=shape[1], dtype=dtype, has_bias=has_bias
    )
    served = [
        check_linear(each.provider, request, context, num_tokens=num_tokens)
        for each in candidates["linear"]
    ]
    assert any(served)


@pytest.mark.parametrize("dtype", list(Dtype))
@pytest.mark.parametrize("num_tokens", [1, 33])
@pytest.mark.parametrize("scheme", WEIGHT_SCHEMES, ids=str)
def test_quantized_linear_matches_the_reference(candidates, context, scheme, num_tokens, dtype):
    request = LinearRequest(
        role="test", in_features=256, out_features=192, dtype=dtype, has_bias=True, scheme=scheme
    )
    served = [
        check_linear(each.provider, request, context, num_tokens=num_tokens)
        for each in candidates["linear"]
    ]
    assert any(served)


@pytest.mark.parametrize("dtype", list(Dtype))
@pytest.mark.parametrize("num_tokens", [1, 7, 129])
@pytest.mark.parametrize("load", list(MoeLoad))
@pytest.mark.parametrize("renormalize", [False, True])
def test_moe_matches_the_reference(candidates, context, renormalize, load, num_tokens, dtype):
    request = MoeRequest(
        hidden_size=48,
        intermediate_size=20,
        num_experts=8,
        top_k=3,
        renormalize=renormalize,
        dtype=dtype,
    )
    served = [
        check_moe(each.provider, request, context, num_tokens=num_tokens, load=load)
        for each in candidates["moe"]
    ]
    assert any(served)


@pytest.mark.parametrize("dtype", list(Dtype))
@pytest.mark.parametrize("num_rows", [1, 7, 200])
@pytest.mark.parametrize("op", list(Op))
def test_op_matches_the_reference(candidates, context, op, num_rows, dtype):
    request = OpRequest(op=op, dtype=dtype)
    served = [
        check_op(each.provider, request, context, size=OpSize(num_rows))
        for each in candidates["ops"]
    ]
    assert any(served)


@pytest.mark.parametrize("kv_dtype", list(Dtype))
def test_a_cache_of_another_type_is_served_by_someone(candidates, context, kv_dtype):
    request = attention_request(Dtype.FLOAT32)
    spec = KvSpec(num_kv_heads=2, head_dim=32, page_size=16, dtype=kv_dtype)
    request = AttentionRequest(
        group="global",
        num_heads=6,
        num_kv_heads=2,
        head_dim=32,
        scale=1.0,
        dtype=request.dtype,
        kv=spec,
    )
    served = [
        check_attention(each.provider, request, context, ATTENTION_CASES[-2])
        for each in candidates["attention"]
    ]
    assert any(served)


def test_reference_is_always_a_candidate(candidates):
    for family in ("attention", "linear", "moe", "ops", "communication"):
        assert "reference" in {each.name for each in candidates[family]}


def test_host_copies_do_not_follow_the_device(chosen):
    tensor = torch.arange(4, device=chosen.platform.torch_device)
    copy = chosen.platform.to_host_async(tensor)
    event = chosen.platform.record_event()
    event.wait()
    tensor += 1
    assert event.is_done()
    assert copy.tolist() == [0, 1, 2, 3]
