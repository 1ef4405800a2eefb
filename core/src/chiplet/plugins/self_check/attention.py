"""A small step of attention: two prompts of odd lengths, one more token each, and then trees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from torch import Generator, Tensor

from chiplet.api import (
    AttentionImpl,
    AttentionRequest,
    CapturingAttention,
    ForwardBatch,
    HostLengths,
    SinkAttention,
)
from chiplet.layers.context import cache_dtype, torch_dtype

_LENGTHS = (5, 37)
_TREES = (4, 3)
_TREE_BITS = (0b1, 0b11, 0b101, 0b1101, 0b1, 0b10, 0b101)
"""Of each tree's tokens the new ones that they see: two branches, and two beginnings."""


def run_attention(
    request: AttentionRequest, impl: AttentionImpl, device: torch.device
) -> Sequence[Tensor]:
    """Results of all batches on the layout that would be used, and the cache after them."""
    random = torch.Generator().manual_seed(1)
    spec, layout = request.kv, impl.layouts()[0]
    pages = [-(-(length + 1 + max(_TREES)) // spec.page_size) for length in _LENGTHS]
    # Pages are not in order, and one is nobody's.
    ids = torch.arange(sum(pages), 0, -1)
    table = torch.zeros(len(pages), max(pages), dtype=torch.int32)
    table[0, : pages[0]], table[1, : pages[1]] = ids[: pages[0]], ids[pages[0] :]
    kv = torch.zeros(layout.shape(spec, sum(pages) + 1), dtype=cache_dtype(spec), device=device)
    sinks = (
        torch.randn(request.num_heads, generator=random).to(device) if request.has_sinks else None
    )
    results: list[Tensor] = []
    batches = [
        make_batch(table, starts, lengths, spec.page_size, device)
        for starts, lengths in (((0, 0), _LENGTHS), (_LENGTHS, (1, 1)))
    ]
    if request.has_tree:
        batches.append(_with_trees(table, spec.page_size, device))
    for batch in batches:
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
        if request.num_captured:  # the tokens themselves may come in another order
            found = cast(CapturingAttention, impl).capture(q, kv, plan, sinks)
            results.append(found.weights)
    return [*results, layout.to_canonical(kv, ids.to(device), spec)]


def _random(
    request: AttentionRequest, num_heads: int, num_tokens: int, random: Generator
) -> Tensor:
    shape = (num_tokens, num_heads, request.head_dim)
    return torch.randn(shape, generator=random).to(torch_dtype(request.dtype))


def _with_trees(table: Tensor, page_size: int, device: torch.device) -> ForwardBatch:
    starts = tuple(length + 1 for length in _LENGTHS)
    batch = make_batch(table, starts, _TREES, page_size, device)
    depths = [each.bit_count() - 1 for each in _TREE_BITS]
    cached = [start for start, count in zip(starts, _TREES, strict=True) for _ in range(count)]
    positions = torch.tensor(cached) + torch.tensor(depths)
    bits = torch.tensor([(each, 0) for each in _TREE_BITS], dtype=torch.int32)
    return replace(batch, positions=positions.int().to(device), tree_bits=bits.to(device))


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
