"""Attention by the plugin's own kernels, on every instruction set that this processor runs."""

import pytest
import torch

from chiplet.api import (
    AttentionRequest,
    BuildContext,
    DeviceProbe,
    Dtype,
    ForwardBatch,
    KvSpec,
    No,
)
from chiplet.testing.conformance import AttentionCase, check_attention, check_layout
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
