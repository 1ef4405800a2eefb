"""Attention by the plugin's own kernels, on every instruction set that this processor runs."""

from dataclasses import replace

import pytest
import torch

from chiplet.api import (
    AttentionRequest,
    BuildContext,
    DeviceProbe,
    Dtype,
    ForwardBatch,
    KvCoding,
    KvSpec,
    No,
)
from chiplet.testing.conformance import AttentionCase, check_attention, check_layout, encode_kv
from chiplet.testing.conformance.attention_trees import random_tree, tree_cases
from chiplet_cpu.attention.native import NativeAttentionProvider
from chiplet_cpu.platform import CpuPlatform

PROBE = DeviceProbe(device_type="cpu", index=0, name="A CPU", total_memory_bytes=1)
CONTEXT = BuildContext(CpuPlatform(PROBE))

CASES = (
    AttentionCase("mixed", (1, 1, 9, 40), (77, 1, 9, 100)),
    AttentionCase("empty ones between", (1, 1, 0, 7, 0), (40, 17, 16, 23, 0)),
    AttentionCase("decodes in parts", (1, 1, 1), (1501, 3, 640)),
    AttentionCase("chunk in parts", (1, 70), (1030, 1100)),
)


LONG_TREES = AttentionCase(  # several blocks of rows, and parts of tokens
    "long trees", (64, 40), (64 + 1100, 40 + 130), parents=(random_tree(64, 7), random_tree(40, 8))
)


def make_request(
    dtype=Dtype.FLOAT32, *, kv_dtype=None, window=None, shape=(6, 2, 32, 16), scale=0.2
):
    num_heads, num_kv_heads, head_dim, page_size = shape
    spec = KvSpec(
        num_kv_heads=num_kv_heads, head_dim=head_dim, page_size=page_size, dtype=kv_dtype or dtype
    )
    return AttentionRequest(
        group="global",
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        scale=scale,
        dtype=dtype,
        kv=spec,
        window=window,
    )


@pytest.mark.parametrize("kv_dtype", list(Dtype))
@pytest.mark.parametrize("dtype", list(Dtype))
def test_types(isa, threads, dtype, kv_dtype):
    request = make_request(dtype, kv_dtype=kv_dtype)
    for case in CASES if threads > 1 else CASES[:1]:
        assert check_attention(NativeAttentionProvider(), request, CONTEXT, case)


@pytest.mark.parametrize("window", [1, 20, 300])
def test_windows(isa, threads, window):
    request = make_request(Dtype.BFLOAT16, window=window)
    for case in CASES:
        assert check_attention(NativeAttentionProvider(), request, CONTEXT, case)


GROUPS = (
    # Two prefixes among the requests, some of which decode and one of which does not.
    AttentionCase("a group", (1,) * 5 + (9,), (205, 193, 400, 194, 1200, 230), 12),
    AttentionCase("rows of many members", (1,) * 40, tuple(range(130, 170)), 8),
    AttentionCase("a prefix in parts", (1,) * 3, (1700, 1650, 1651), 103),
    AttentionCase("a prefix in parts for many", (1,) * 20, tuple(range(1030, 1050)), 64),
    AttentionCase("nothing but the last token apart", (1, 1), (321, 321), 20),
    AttentionCase("many short ones, none shared", (1,) * 40, tuple(range(1, 41))),
)


@pytest.mark.parametrize("dtype", list(Dtype))
@pytest.mark.parametrize("case", GROUPS, ids=lambda case: case.name.replace(" ", "-"))
def test_shared_prefixes(isa, threads, case, dtype):
    request = make_request(dtype)
    assert check_attention(NativeAttentionProvider(), request, CONTEXT, case)


@pytest.mark.parametrize("dtype", list(Dtype))
@pytest.mark.parametrize("coding", [None, *KvCoding])
@pytest.mark.parametrize(("softcap", "has_sinks"), [(None, False), (2.0, True)])
def test_what_models_ask_for(isa, threads, softcap, has_sinks, coding, dtype):
    request = make_request(dtype)
    spec = replace(request.kv, coding=coding)
    request = replace(request, softcap=softcap, has_sinks=has_sinks, kv=spec)
    for case in (CASES[threads], GROUPS[0]):
        assert check_attention(NativeAttentionProvider(), request, CONTEXT, case, score_scale=5.0)


@pytest.mark.parametrize("coding", [None, KvCoding.INT8])
@pytest.mark.parametrize("window", [None, 3, 20])
def test_trees(isa, threads, window, coding):
    request = make_request(Dtype.BFLOAT16, window=window)
    request = replace(request, has_tree=True, kv=replace(request.kv, coding=coding))
    for case in (*tree_cases(16), LONG_TREES):
        assert check_attention(NativeAttentionProvider(), request, CONTEXT, case)


def test_trees_with_all_that_models_ask_for(isa):
    request = make_request(Dtype.FLOAT32, window=9)
    request = replace(request, has_tree=True, softcap=2.0, has_sinks=True)
    for case in tree_cases(16):
        assert check_attention(NativeAttentionProvider(), request, CONTEXT, case, score_scale=5.0)


@pytest.mark.parametrize("coding", list(KvCoding))
@pytest.mark.parametrize("shape", [(7, 7, 80, 32), (4, 1, 96, 128)], ids=str)
def test_shapes_of_codes(isa, shape, coding):
    request = make_request(Dtype.BFLOAT16, shape=shape)
    request = replace(request, kv=replace(request.kv, coding=coding))
    assert check_attention(NativeAttentionProvider(), request, CONTEXT, CASES[0])
    (layout,) = NativeAttentionProvider().build(request, CONTEXT).layouts()
    check_layout(layout, request.kv, CONTEXT.torch_device)


def test_codes_of_every_number_are_those_of_the_reference(isa):
    request = make_request(Dtype.FLOAT16, shape=(1, 1, 64, 16))
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    rows = every[every.isfinite()].view(-1, 1, 64)
    for coding in KvCoding:
        spec = replace(request.kv, coding=coding)
        impl = NativeAttentionProvider().build(replace(request, kv=spec), CONTEXT)
        (layout,) = impl.layouts()
        num_pages = len(rows) // 16
        kv = torch.zeros(layout.shape(spec, num_pages), dtype=torch.uint8)
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1)).int()
        batch = ForwardBatch(
            num_decodes=0,
            token_ids=torch.zeros(len(rows), dtype=torch.int32),
            positions=torch.zeros(len(rows), dtype=torch.int32),
            kv_rows=order,
            query_starts=torch.zeros(2, dtype=torch.int32),
            kv_lengths=torch.zeros(1, dtype=torch.int32),
            page_table=torch.zeros(1, 1, dtype=torch.int32),
            logit_rows=torch.zeros(1, dtype=torch.int32),
            lengths_host=None,
        )
        impl.run(rows, rows, rows, kv, impl.plan(batch, layout))
        cache = layout.to_canonical(kv, torch.arange(num_pages), spec)
        written = cache.transpose(1, 2).flatten(0, 1)[order.long()]
        assert torch.equal(written, encode_kv(rows, coding).unsqueeze(1).expand_as(written))


@pytest.mark.parametrize(
    "shape",
    [(1, 1, 16, 16), (7, 7, 80, 32), (8, 1, 64, 48), (4, 1, 96, 128), (2, 1, 256, 16)],
    ids=str,
)
@pytest.mark.parametrize("dtype", list(Dtype))
def test_shapes(isa, threads, shape, dtype):
    request = make_request(dtype, shape=shape)
    for case in (CASES[0], CASES[2]):
        assert check_attention(NativeAttentionProvider(), request, CONTEXT, case)
    (layout,) = NativeAttentionProvider().build(request, CONTEXT).layouts()
    check_layout(layout, request.kv, CONTEXT.torch_device)


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"shape": (2, 2, 32, 8)}, "page size"),
        ({"shape": (2, 2, 40, 16)}, "head"),
        ({"scale": -1.0}, "scale"),
    ],
)
def test_what_does_not_fit_vectors_is_refused(isa, wrong, word):
    verdict = NativeAttentionProvider().assess(make_request(**wrong))
    assert isinstance(verdict, No)
    assert [each.code for each in verdict.reasons] == [word]


def test_lengths_and_pages_are_read_when_it_runs(isa):
    request = make_request(Dtype.BFLOAT16)
    impl = NativeAttentionProvider().build(request, CONTEXT)
    (layout,) = impl.layouts()
    random = torch.Generator().manual_seed(7)
    kv = torch.randn(layout.shape(request.kv, 8), generator=random).bfloat16()
    q, k, v = (torch.randn(2, n, 32, generator=random).bfloat16() for n in (6, 2, 2))
    batch = ForwardBatch(
        num_decodes=2,
        token_ids=torch.zeros(2, dtype=torch.int32),
        positions=torch.zeros(2, dtype=torch.int32),
        kv_rows=torch.full((2,), 7 * 16, dtype=torch.int32),
        query_starts=torch.tensor([0, 1, 2], dtype=torch.int32),
        kv_lengths=torch.ones(2, dtype=torch.int32),
        page_table=torch.full((2, 3), 7, dtype=torch.int32),
        logit_rows=torch.arange(2, dtype=torch.int32),
        lengths_host=None,
    )
    plan = impl.plan(batch, layout)
    first = impl.run(q, k, v, kv.clone(), plan)
    batch.kv_lengths.copy_(torch.tensor([40, 17]))
    batch.page_table.copy_(torch.tensor([[4, 1, 2], [3, 0, 7]]))
    batch.kv_rows.copy_(torch.tensor([2 * 16 + 7, 0]))
    expected = impl.run(q, k, v, kv.clone(), impl.plan(batch, layout))
    assert torch.equal(impl.run(q, k, v, kv.clone(), plan), expected)
    assert not torch.equal(first, expected)
