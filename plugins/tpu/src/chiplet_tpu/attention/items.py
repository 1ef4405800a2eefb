"""Work items of attention: some consecutive queries of one request, in static numbers.

How many items a request needs depends on its length; how many a step may need at most does not.
Everything here is tensor operations, so that it becomes part of the compiled step.

Legend: T tokens, R requests, I items, Q queries per item.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from chiplet.api import ForwardBatch


class QueryItems(NamedTuple):
    """Queries cut into items, and the way back.

    Attributes:
        requests: `[I] int32`, row of the page table.
        positions: `[I] int32`, position of the item's first query in its request.
        lengths: `[I] int32`, queries in the item; 0 for padding.
        tokens: `[I, Q] int32`, row of each query among the step's tokens; of padding, any row.
        places: `[T] int32`, where each token's query stands among I * Q; of padding, anywhere.
    """

    requests: Tensor
    positions: Tensor
    lengths: Tensor
    tokens: Tensor
    places: Tensor


def cut_queries(batch: ForwardBatch, queries_per_item: int) -> QueryItems:
    """The items of a step; one query each where every request has one token."""
    device = batch.token_ids.device
    if batch.num_decodes == batch.num_requests:
        rows = torch.arange(batch.num_tokens, dtype=torch.int32, device=device)
        ones = torch.ones_like(rows)
        return QueryItems(rows, batch.positions, ones, rows.unsqueeze(1), rows)
    num_tokens, num_requests, size = batch.num_tokens, batch.num_requests, queries_per_item
    num_items = num_tokens // size + num_requests
    starts, ends = batch.query_starts[:-1], batch.query_starts[1:]
    counts = (ends - starts + (size - 1)) // size
    last_items = counts.cumsum(0).int()
    first_items = last_items - counts
    items = torch.arange(num_items, dtype=torch.int32, device=device)
    requests = _owner(items, last_items)
    first = starts[requests] + (items - first_items[requests]) * size
    lengths = (ends[requests] - first).clamp(0, size)
    before = batch.kv_lengths - (ends - starts)
    positions = torch.where(lengths > 0, before[requests] + first - starts[requests], 0)
    offsets = torch.arange(size, dtype=torch.int32, device=device)
    tokens = (first.unsqueeze(1) + offsets).clamp(0, num_tokens - 1)
    rows = torch.arange(num_tokens, dtype=torch.int32, device=device)
    owners = _owner(rows, ends)
    within = rows - starts[owners]
    places = (first_items[owners] + within // size) * size + within % size
    return QueryItems(
        requests,
        positions.int(),
        lengths.int(),
        tokens.int(),
        places.clamp(0, num_items * size - 1).int(),
    )


class PageRuns(NamedTuple):
    """Pages that get new rows, and the token of each of their rows. P: tokens per page.

    Attributes:
        page_ids: `[I] int32`; padding repeats the last page, and writes to it the same again.
        first_rows, end_rows: `[I] int32`, rows of the page that are new; none where there are no
            tokens at all.
        tokens: `[I, P] int32`, row of each page row among the step's tokens; of others, any row.
    """

    page_ids: Tensor
    first_rows: Tensor
    end_rows: Tensor
    tokens: Tensor


def cut_pages(batch: ForwardBatch, page_size: int) -> PageRuns:
    """The pages that a step writes to; rows of padding are left out."""
    device = batch.token_ids.device
    offsets = torch.arange(page_size, dtype=torch.int32, device=device)
    if batch.num_decodes == batch.num_requests:
        rows = torch.arange(batch.num_tokens, dtype=torch.int32, device=device)
        page_ids = batch.kv_rows // page_size
        first = batch.kv_rows % page_size
        tokens = rows.unsqueeze(1).expand(-1, page_size)
        return PageRuns(page_ids, first, first + 1, tokens)
    num_items = batch.num_tokens // page_size + 2 * batch.num_requests
    starts, ends = batch.query_starts[:-1], batch.query_starts[1:]
    before = batch.kv_lengths - (ends - starts)
    first_pages = before // page_size
    counts = torch.where(
        ends > starts, (batch.kv_lengths + (page_size - 1)) // page_size - first_pages, 0
    )
    last_items = counts.cumsum(0).int()
    first_items = last_items - counts
    items = torch.arange(num_items, dtype=torch.int32, device=device)
    items = torch.minimum(items, (last_items[-1] - 1).clamp(min=0))
    requests = _owner(items, last_items)
    pages = first_pages[requests] + items - first_items[requests]
    at = pages * page_size
    first = (before[requests] - at).clamp(0, page_size)
    end = torch.where(last_items[-1] > 0, batch.kv_lengths[requests] - at, first)
    columns = pages.clamp(0, batch.page_table.shape[1] - 1)
    page_ids = batch.page_table[requests, columns]
    tokens = (starts[requests] + at - before[requests]).unsqueeze(1) + offsets
    return PageRuns(
        page_ids.int(),
        first.int(),
        end.clamp(0, page_size).int(),
        tokens.clamp(0, batch.num_tokens - 1).int(),
    )


def _owner(rows: Tensor, ends: Tensor) -> Tensor:
    """For each row, in which run it lies; the last run for rows behind all."""
    behind = (rows.unsqueeze(1) >= ends.unsqueeze(0)).sum(dim=1)
    return behind.clamp(max=ends.shape[0] - 1).int()
