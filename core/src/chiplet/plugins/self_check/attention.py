"""A small step of attention: two prompts of odd lengths, then one more token each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Generator, Tensor

from chiplet.api import AttentionImpl, AttentionRequest, ForwardBatch, HostLengths, SinkAttention
from chiplet.layers.context import cache_dtype, torch_dtype

_LENGTHS = (5, 37)


def run_attention(
    request: AttentionRequest, impl: AttentionImpl, device: torch.device
) -> Sequence[Tensor]:
    """Results of both batches on the layout that would be used, and the cache after them."""
    random = torch.Generator().manual_seed(1)
    spec, layout = request.kv, impl.layouts()[0]
    pages = [-(-(length + 1) // spec.page_size) for length in _LENGTHS]
    # Pages are not in order, and one is nobody's.
    ids = torch.arange(sum(pages), 0, -1)
    table = torch.zeros(len(pages), max(pages), dtype=torch.int32)
    table[0, : pages[0]], table[1, : pages[1]] = ids[: pages[0]], ids[pages[0] :]
    kv = torch.zeros(layout.shape(spec, sum(pages) + 1), dtype=cache_dtype(spec), device=device)
    sinks = (
        torch.randn(request.num_heads, generator=random).to(device) if request.has_sinks else None
    )
    results: list[Tensor] = []
    for starts, lengths in (((0, 0), _LENGTHS), (_LENGTHS, (1, 1))):
        batch = make_batch(table, starts, lengths, spec.page_size, device)
        q = _random(request, request.num_heads, batch.num_tokens, random).to(device)
        k, v = (
            _random(request, request.num_kv_heads, batch.num_tokens, random).to(device)
            for _ in range(2)
        )
        plan = impl.plan(batch, layout)
        if sinks is None:
            results.append(impl.run(q, k, v, kv, plan))
        else:
            results.append(cast(SinkAttention, impl).run_with_sinks(q, k, v, kv, plan, sinks))
    return [*results, layout.to_canonical(kv, ids.to(device), spec)]


def _random(
    request: AttentionRequest, num_heads: int, num_tokens: int, random: Generator
) -> Tensor:
    shape = (num_tokens, num_heads, request.head_dim)
    return torch.randn(shape, generator=random).to(torch_dtype(request.dtype))


def make_batch(
    table: Tensor,
    starts: tuple[int, ...],
    lengths: tuple[int, ...],
    page_size: int,
    device: torch.device,
) -> ForwardBatch:
    """A batch of tokens `[start, start + length)` of each request.

    Shapes: table `[num_requests, max_pages] int32`, host.
    """
    spans = list(zip(starts, lengths, strict=True))
    positions = [torch.arange(start, start + length) for start, length in spans]
    rows = [
        table[index][at // page_size] * page_size + at % page_size
        for index, at in enumerate(positions)
    ]
    query_starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    kv_lengths = np.array([start + length for start, length in spans], np.int32)
    return ForwardBatch(
        num_decodes=sum(length == 1 for length in lengths),
        token_ids=torch.zeros(sum(lengths), dtype=torch.int32, device=device),
        positions=torch.cat(positions).int().to(device),
        kv_rows=torch.cat(rows).int().to(device),
        query_starts=torch.from_numpy(query_starts).to(device),
        kv_lengths=torch.from_numpy(kv_lengths).to(device),
        page_table=table.to(device),
        logit_rows=torch.from_numpy(query_starts[1:] - 1).to(device),
        lengths_host=HostLengths(np.array(lengths, np.int32), kv_lengths),
    )
