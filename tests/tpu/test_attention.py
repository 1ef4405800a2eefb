"""Attention providers against core's reference; kernels are interpreted."""

import pytest

pytest.importorskip("torchax", reason="torchax is not installed; run 'make test-tpu'")

import jax.numpy as jnp
import numpy as np
import torch

from chiplet.api import (
    AttentionRequest,
    BuildContext,
    DeviceProbe,
    Dtype,
    ForwardBatch,
    KvSpec,
    No,
    Yes,
)
from chiplet.reference.attention import ReferenceAttention
from chiplet_tpu.attention.gather import GatherProvider
from chiplet_tpu.attention.layout import HeadFirstLayout, InterleavedLayout
from chiplet_tpu.attention.pallas import PallasAttentionProvider
from chiplet_tpu.attention.ragged import RaggedAttentionProvider
from chiplet_tpu.compilation.arrays import array_of, wrap
from chiplet_tpu.compilation.lowerings import environment

PAGE_SIZE, MAX_PAGES = 16, 6
EMULATED = DeviceProbe(
    device_type="tpu", index=0, name="", total_memory_bytes=0, facts={"emulated": "yes"}
)
CHIP = DeviceProbe(device_type="tpu", index=0, name="", total_memory_bytes=0)


def request_of(head_dim, *, window=None, page_size=PAGE_SIZE, dtype=Dtype.FLOAT32):
    return AttentionRequest(
        group="global",
        num_heads=6,
        num_kv_heads=2,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        dtype=dtype,
        window=window,
        kv=KvSpec(num_kv_heads=2, head_dim=head_dim, page_size=page_size, dtype=dtype),
    )


def mixed_batch(starts, lengths, *, num_tokens, num_requests, padding_page):
    """Chunks of requests with pages in no order, filled up with padding to a bucket."""
    page_ids = np.random.default_rng().permutation(padding_page).astype(np.int32)
    table = np.zeros((num_requests, MAX_PAGES), np.int32)
    for row in range(len(starts)):
        table[row] = page_ids[row * MAX_PAGES : (row + 1) * MAX_PAGES]
    positions = np.zeros(num_tokens, np.int32)
    kv_rows = np.full(num_tokens, padding_page * PAGE_SIZE, np.int32)
    query_starts = [0]
    for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        at = np.arange(start, start + length)
        tokens = slice(query_starts[-1], query_starts[-1] + length)
        positions[tokens] = at
        kv_rows[tokens] = table[row][at // PAGE_SIZE] * PAGE_SIZE + at % PAGE_SIZE
        query_starts.append(query_starts[-1] + length)
    padding = num_requests - len(starts)
    ends = [a + b for a, b in zip(starts, lengths, strict=True)]
    return ForwardBatch(
        num_decodes=0,
        token_ids=on_device(np.zeros(num_tokens, np.int32)),
        positions=on_device(positions),
        kv_rows=on_device(kv_rows),
        query_starts=on_device(np.int32([*query_starts, *[query_starts[-1]] * padding])),
        kv_lengths=on_device(np.int32(ends + [0] * padding)),
        page_table=on_device(table),
        logit_rows=on_device(np.zeros(num_requests, np.int32)),
        lengths_host=None,
    )


def on_device(array):
    return wrap(jnp.asarray(array))


def run_both(provider, request, batch, padding_page):
    """Result and cache of a provider, and of the reference, from the same random start."""
    random, head_dim = np.random.default_rng(), request.head_dim
    canonical, q, k, v = (
        on_device(random.normal(size=shape).astype(np.float32))
        for shape in (
            (padding_page + 1, 2, PAGE_SIZE, 2, head_dim),
            (batch.num_tokens, 6, head_dim),
            (batch.num_tokens, 2, head_dim),
            (batch.num_tokens, 2, head_dim),
        )
    )
    ids = on_device(np.arange(padding_page + 1))
    results = []
    for each in (provider, ReferenceAttention()):
        impl = each.build(request, BuildContext(None))
        layout = impl.layouts()[0]
        pages = on_device(np.zeros(layout.shape(request.kv, padding_page + 1), np.float32))
        layout.from_canonical(canonical, pages, ids, request.kv)
        out = impl.run(q, k, v, pages, impl.plan(batch, layout))
        cache = layout.to_canonical(pages, ids, request.kv)
        results += [np.asarray(array_of(out)), np.asarray(array_of(cache))]
    return results


CASES = {
    "whole prompts": ([0, 0, 0], [5, 37, 16]),
    "chunks in the middle of pages": ([13, 40], [21, 33]),
    "a long request beside single tokens": ([63, 0, 15], [1, 70, 1]),
}


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "provider", [GatherProvider(), PallasAttentionProvider(EMULATED)], ids=lambda each: each.name
)
def test_mixed_steps_with_padding(provider, case, window):
    starts, lengths = CASES[case]
    request, padding_page = request_of(64, window=window), 24
    with environment(), torch.no_grad():
        batch = mixed_batch(
            starts, lengths, num_tokens=96, num_requests=4, padding_page=padding_page
        )
        out, cache, expected, expected_cache = run_both(provider, request, batch, padding_page)
    used = sum(lengths)
    np.testing.assert_allclose(out[:used], expected[:used], atol=2e-5)
    np.testing.assert_array_equal(cache[:padding_page], expected_cache[:padding_page])


@pytest.mark.parametrize(
    "layout", [HeadFirstLayout(), InterleavedLayout()], ids=lambda each: each.name
)
def test_pages_go_to_the_canonical_layout_and_back(layout):
    spec = request_of(64).kv
    canonical = torch.randn(3, 2, PAGE_SIZE, 2, 64)
    ids = torch.tensor([5, 0, 2])
    kv = torch.full(layout.shape(spec, 7), torch.nan)
    layout.from_canonical(canonical, kv, ids, spec)
    torch.testing.assert_close(layout.to_canonical(kv, ids, spec), canonical)
    assert kv[[1, 3, 4, 6]].isnan().all()


@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
def test_a_chip_gets_kernels(head_dim):
    request = request_of(head_dim, dtype=Dtype.BFLOAT16)
    ragged = RaggedAttentionProvider(CHIP).assess(request)
    assert isinstance(ragged, Yes) == (head_dim == 128)
    own, gather = PallasAttentionProvider(CHIP).assess(request), GatherProvider().assess(request)
    assert own.score > gather.score


@pytest.mark.parametrize(
    ("changes", "code"),
    [({"head_dim": 80}, "head_dim"), ({"head_dim": 64, "page_size": 8}, "page_size")],
)
def test_what_kernels_do_not_serve_is_refused_with_the_reason(changes, code):
    verdict = PallasAttentionProvider(CHIP).assess(request_of(dtype=Dtype.BFLOAT16, **changes))
    assert isinstance(verdict, No)
    assert verdict.reasons[0].code == code
