"""Attention and KV layouts against the reference."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Generator, Tensor

from chiplet.api import (
    AttentionImpl,
    AttentionProvider,
    AttentionRequest,
    BuildContext,
    ForwardBatch,
    HostLengths,
    KvLayout,
    KvSpec,
)
from chiplet.reference.attention import CanonicalLayout, PlainAttention
from chiplet.testing.conformance.tolerance import TORCH_DTYPES, assert_close
from chiplet.testing.conformance.verdict import is_served


@dataclass(frozen=True, slots=True)
class AttentionCase:
    """A batch by its lengths; requests with one query token come first.

    Attributes:
        query_lengths: query tokens of each request.
        kv_lengths: tokens in the cache after the pass, of each request.
    """

    name: str
    query_lengths: tuple[int, ...]
    kv_lengths: tuple[int, ...]


def _cases(page: int = 16) -> tuple[AttentionCase, ...]:
    around = (1, page - 1, page, page + 1, 2 * page, 5 * page - 1)
    return (
        AttentionCase("one token", (1,), (1,)),
        AttentionCase("decode one", (1,), (37,)),
        AttentionCase("decode around a page", (1,) * len(around), around),
        AttentionCase("decode of unlike lengths", (1,) * 7, (300, 3, 17, 90, 2, 170, 40)),
        AttentionCase("whole prompt", (50,), (50,)),
        AttentionCase("prompts around a page", around[1:], around[1:]),
        AttentionCase("chunks with prefix", (5, page, 33), (page + 5, 3 * page, 60)),
        AttentionCase("last chunk of two", (2, 3), (page + 1, page + 2)),
        AttentionCase("mixed", (1, 1, 9, 40), (77, 1, 9, 100)),
        AttentionCase("long chunk with prefix", (530,), (600,)),
    )


ATTENTION_CASES = _cases()
"""Lengths at which implementations go wrong, for pages of 16 tokens."""


@dataclass(frozen=True, slots=True)
class _Inputs:
    """A batch with its cache.

    Attributes:
        canonical: `[num_pages, 2, page_size, num_kv_heads, head_dim]`, NaN wherever no token was
            written.
    """

    batch: ForwardBatch
    q: Tensor
    k: Tensor
    v: Tensor
    canonical: Tensor


def check_attention(
    provider: AttentionProvider,
    request: AttentionRequest,
    context: BuildContext,
    case: AttentionCase,
    *,
    score_scale: float = 1.0,
) -> bool:
    """Whether the provider serves the request; if it does, result and cache are compared.

    Pages are scattered, the cache is NaN wherever no token was written, and q, k, v are views of
    one tensor.

    Args:
        provider: what is checked.
        request: what is asked of it.
        context: where it runs.
        case: lengths of the requests in the batch.
        score_scale: factor on queries; a large one makes the softmax sharp.

    Raises:
        AssertionError: the result is wrong, or the cache was changed where it must not.
    """
    if not is_served(provider, request):
        return False
    inputs = _make_inputs(request, case, score_scale)
    impl = provider.build(request, context)
    plain = PlainAttention(request)
    exact_out, _ = _run(plain, CanonicalLayout(), request, _widened(inputs))
    plain_out, plain_cache = _run(plain, CanonicalLayout(), request, inputs)
    for layout in impl.layouts():
        what = f"{provider.name}, layout {layout.name}, {case.name}, {request}"
        moved = _moved(inputs, context.torch_device)
        for each in ("once", "again"):  # a second run finds its own tokens in the cache
            out, cache = _run(impl, layout, request, moved)
            assert_close(out.cpu(), plain_out, exact_out, f"{what}, {each}")
            assert torch.equal(cache.cpu().isnan(), plain_cache.isnan()), f"{what}: stray writes"
            assert torch.equal(cache.cpu().nan_to_num(), plain_cache.nan_to_num()), (
                f"{what}: the cache differs"
            )
            moved = _Inputs(moved.batch, moved.q, moved.k, moved.v, cache)
    return True


def check_layout(layout: KvLayout, spec: KvSpec, device: torch.device) -> None:
    """Check that pages survive the way to a layout and back, and that others stay untouched.

    Raises:
        AssertionError: they do not.
    """
    num_pages, dtype = 7, TORCH_DTYPES[spec.dtype]
    shape = layout.shape(spec, num_pages)
    kv = torch.zeros(shape, dtype=dtype, device=device)
    assert kv.numel() * kv.itemsize == num_pages * layout.page_bytes(spec), (
        f"layout {layout.name}: page_bytes and shape disagree"
    )
    page_ids = torch.tensor([5, 0, 3], device=device)
    one_page = (2, spec.page_size, spec.num_kv_heads, spec.head_dim)
    canonical = torch.randn(3, *one_page).to(dtype).to(device)
    layout.from_canonical(canonical, kv, page_ids, spec)
    back = layout.to_canonical(kv, page_ids, spec)
    assert back.is_contiguous(), f"layout {layout.name}: the canonical copy is not contiguous"
    assert torch.equal(back, canonical), f"layout {layout.name}: pages changed on the way"
    others = layout.to_canonical(kv, torch.tensor([1, 2, 4, 6], device=device), spec)
    assert not others.any(), f"layout {layout.name}: other pages were written"


def _make_inputs(request: AttentionRequest, case: AttentionCase, score_scale: float) -> _Inputs:
    random = torch.Generator().manual_seed(sum(case.kv_lengths) + len(case.kv_lengths))
    spec, dtype = request.kv, TORCH_DTYPES[request.dtype]
    batch, num_pages = _make_batch(case, spec.page_size, random)
    num_heads, num_kv_heads = request.num_heads, request.num_kv_heads
    width = num_heads + 2 * num_kv_heads
    qkv = torch.randn(batch.num_tokens, width, request.head_dim, generator=random)
    qkv[:, :num_heads] *= score_scale
    q, k, v = qkv.to(dtype).split([num_heads, num_kv_heads, num_kv_heads], dim=1)
    shape = (num_pages, 2, spec.page_size, num_kv_heads, request.head_dim)
    canonical = torch.full(shape, torch.nan, dtype=TORCH_DTYPES[spec.dtype])
    for index, (length, queries) in enumerate(
        zip(case.kv_lengths, case.query_lengths, strict=True)
    ):
        at = torch.arange(length - queries)
        pages, offsets = batch.page_table[index].long()[at // spec.page_size], at % spec.page_size
        old = torch.randn(len(at), 2, num_kv_heads, request.head_dim, generator=random)
        canonical[pages, :, offsets] = old.to(canonical.dtype)
    return _Inputs(batch, q, k, v, canonical)


def _make_batch(case: AttentionCase, page_size: int, random: Generator) -> tuple[ForwardBatch, int]:
    """The batch, and how many pages the cache has: some more than the batch uses."""
    kv_lengths = np.array(case.kv_lengths, np.int32)
    query_lengths = np.array(case.query_lengths, np.int32)
    counts = -(-kv_lengths // page_size)
    num_pages = int(counts.sum()) + 3
    scattered = torch.randperm(num_pages, generator=random).int()
    table = torch.zeros(len(counts), int(counts.max()), dtype=torch.int32)
    taken = 0
    for index, count in enumerate(counts.tolist()):
        table[index, :count] = scattered[taken : taken + count]
        taken += count
    positions = [
        torch.arange(length - queries, length)
        for length, queries in zip(case.kv_lengths, case.query_lengths, strict=True)
    ]
    kv_rows = [
        table[index].long()[each // page_size] * page_size + each % page_size
        for index, each in enumerate(positions)
    ]
    starts = torch.from_numpy(np.concatenate([[0], np.cumsum(query_lengths)]).astype(np.int32))
    batch = ForwardBatch(
        num_decodes=sum(1 for each in case.query_lengths if each == 1),
        token_ids=torch.zeros(int(query_lengths.sum()), dtype=torch.int32),
        positions=torch.cat(positions).int(),
        kv_rows=torch.cat(kv_rows).int(),
        query_starts=starts,
        kv_lengths=torch.from_numpy(kv_lengths),
        page_table=table,
        logit_rows=starts[1:] - 1,
        lengths_host=HostLengths(query_lengths, kv_lengths),
    )
    return batch, num_pages


def _run(
    impl: AttentionImpl, layout: KvLayout, request: AttentionRequest, inputs: _Inputs
) -> tuple[Tensor, Tensor]:
    """Output, and the cache after it in the canonical layout."""
    canonical = inputs.canonical
    num_pages = canonical.shape[0]
    shape = layout.shape(request.kv, num_pages)
    kv = torch.full(shape, torch.nan, dtype=canonical.dtype, device=canonical.device)
    page_ids = torch.arange(num_pages, device=canonical.device)
    layout.from_canonical(canonical, kv, page_ids, request.kv)
    plan = impl.plan(inputs.batch, layout)
    out = impl.run(inputs.q, inputs.k, inputs.v, kv, plan)
    return out, layout.to_canonical(kv, page_ids, request.kv)


def _moved(inputs: _Inputs, device: torch.device) -> _Inputs:
    batch = inputs.batch
    tensors = {
        each.name: getattr(batch, each.name).to(device)
        for each in fields(batch)
        if isinstance(getattr(batch, each.name), Tensor)
    }
    return _Inputs(
        replace(batch, **tensors),
        inputs.q.to(device),
        inputs.k.to(device),
        inputs.v.to(device),
        inputs.canonical.to(device),
    )


def _widened(inputs: _Inputs) -> _Inputs:
    return _Inputs(
        inputs.batch,
        inputs.q.double(),
        inputs.k.double(),
        inputs.v.double(),
        inputs.canonical.double(),
    )
