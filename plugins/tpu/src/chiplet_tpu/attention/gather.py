"""Attention by gathering pages: plain tensor operations, for whatever the kernels do not serve.

Every item gathers all pages that its row of the table could name, so that the cost is that of the
longest request that the bucket serves.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from chiplet.api import (
    AttentionRequest,
    BuildContext,
    Feature,
    ForwardBatch,
    KvLayout,
    Tier,
    Verdict,
    Yes,
)
from chiplet_tpu.attention.items import QueryItems, cut_queries
from chiplet_tpu.attention.layout import HeadFirstLayout

_QUERIES_PER_ITEM = 32


class GatherPlan(NamedTuple):
    """What a step needs to attend. I: items, T: tokens.

    Attributes:
        items: the queries.
        page_ids: `[I, max_pages] int32`, pages of each item's request.
        kv_pages, kv_offsets: `[T] int32`, where each token's key and value go.
    """

    items: QueryItems
    page_ids: Tensor
    kv_pages: Tensor
    kv_offsets: Tensor


class GatherAttention:
    """softmax(scale * q k^T + mask) v over gathered pages, in float32."""

    def __init__(self, request: AttentionRequest) -> None:
        self._request = request

    def layouts(self) -> tuple[KvLayout, ...]:
        """That of the kernels, so that either may serve."""
        return (HeadFirstLayout(),)

    def plan(self, batch: ForwardBatch, layout: KvLayout) -> GatherPlan:
        """Cut the queries into items."""
        page_size = self._request.kv.page_size
        items = cut_queries(batch, _QUERIES_PER_ITEM)
        return GatherPlan(
            items,
            batch.page_table[items.requests],
            batch.kv_rows // page_size,
            batch.kv_rows % page_size,
        )

    def run(self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, plan: GatherPlan) -> Tensor:
        """Write, then attend; see `chiplet.api.AttentionImpl.run`."""
        kv[plan.kv_pages, :, plan.kv_offsets] = torch.cat([k, v], dim=-1).to(kv.dtype)
        num_kv_heads, head_dim = self._request.num_kv_heads, self._request.head_dim
        num_items, num_queries = plan.items.tokens.shape
        # [items, max_pages, num_kv_heads, page_size, 2 * head_dim]
        pages = kv[plan.page_ids].float().transpose(1, 2).flatten(2, 3)
        is_visible = self._visible(plan.items, pages.shape[2], num_queries)
        # What no query sees may be NaN, which not even a weight of zero would hide.
        is_used = is_visible.any(dim=1)[:, None, :, None]
        keys, values = torch.where(is_used, pages, 0.0).split(head_dim, dim=-1)
        rows = q[plan.items.tokens].float()  # [items, queries, num_heads, head_dim]
        rows = rows.unflatten(2, (num_kv_heads, -1))
        scores = torch.einsum("iqkgd,ikld->ikgql", rows, keys) * self._request.scale
        scores = scores.masked_fill(~is_visible[:, None, None], -1e30)
        weights = torch.softmax(scores, dim=-1)
        out = torch.einsum("ikgql,ikld->iqkgd", weights, values)
        out = out.reshape(num_items * num_queries, -1, head_dim)
        return out[plan.items.places].to(q.dtype)

    def _visible(self, items: QueryItems, num_keys: int, num_queries: int) -> Tensor:
        """Which keys each query sees, `[items, queries, keys] bool`."""
        device = items.positions.device
        rows = torch.arange(num_queries, dtype=torch.int32, device=device)
        keys = torch.arange(num_keys, dtype=torch.int32, device=device)
        at = (items.positions.unsqueeze(1) + rows).unsqueeze(2)
        is_visible = (keys <= at) & (rows < items.lengths.unsqueeze(1)).unsqueeze(2)
        if self._request.window is not None:
            is_visible = is_visible & (keys > at - self._request.window)
        return is_visible


class GatherProvider:
    """Serves every head dim and page size."""

    name = "gather"
    accepts = frozenset({Feature.SLIDING_WINDOW, Feature.MIXED_KV_DTYPE})

    def assess(self, request: AttentionRequest) -> Verdict:
        """Always yes, below kernels that run on the chip itself."""
        return Yes(Tier.GENERIC, "reads all pages that the table could name")

    def build(self, request: AttentionRequest, context: BuildContext) -> GatherAttention:
        """The gathering sum."""
        return GatherAttention(request)
