"""Attention that gathers a step's pages and calls torch's fused attention on them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

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
from chiplet_cpu.attention.layout import HeadsInPageLayout
from chiplet_cpu.attention.planning import DecodeGroup, Extend, Planner, StepPlan


class PagedSdpa:
    """Gathers keys and values page by page, then softmax(scale * q k^T + mask) v.

    The query heads that share a key head are folded into the query dimension: torch then reads
    each key once for all of them.
    """

    def __init__(self, request: AttentionRequest) -> None:
        self._num_kv_heads = request.num_kv_heads
        self._group_size = request.num_heads // request.num_kv_heads
        self._head_dim = request.head_dim
        self._page_width = request.kv.page_size * request.head_dim
        self._scale = request.scale
        self._planner = Planner(request)
        # Gathered pages; kept, because fresh memory costs more than the gather itself.
        self._workspace = torch.empty(0)

    def layouts(self) -> tuple[KvLayout, ...]:
        """The one layout whose pages need no transposition after a gather."""
        return (HeadsInPageLayout(),)

    def plan(self, batch: ForwardBatch, layout: KvLayout) -> StepPlan:
        """Indices and masks of a step."""
        return self._planner.plan(batch)

    def run(self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, plan: StepPlan) -> Tensor:
        """Write, then attend; see `chiplet.api.AttentionImpl.run`."""
        new = torch.cat([k, v], dim=1).view(-1, self._head_dim)
        kv.view(-1, self._head_dim).index_copy_(0, plan.write, new)
        pages = kv.view(-1, self._page_width)
        out = torch.empty(q.shape, dtype=q.dtype)
        if plan.num_decodes:
            self._decode(q[: plan.num_decodes], pages, plan, out[: plan.num_decodes])
        for extend in plan.extends:
            self._extend(q, pages, extend, out)
        return out

    def _decode(self, q: Tensor, pages: Tensor, plan: StepPlan, out: Tensor) -> None:
        """Requests with one query token. Mutates: `out`."""
        if plan.order is None:
            for group in plan.groups:
                out[group.start : group.end] = self._attend_group(q, pages, group)
            return
        q = q.index_select(0, plan.order)
        results = [self._attend_group(q, pages, group) for group in plan.groups]
        out.index_copy_(0, plan.order, torch.cat(results))

    def _attend_group(self, q: Tensor, pages: Tensor, group: DecodeGroup) -> Tensor:
        """Shapes: returns `[requests, num_heads, head_dim]`."""
        num_requests = group.end - group.start
        gathered = self._gather(pages, group.gather)
        if group.unwritten is not None:
            gathered.view(-1, self._head_dim).index_fill_(0, group.unwritten, 0)
        heads = (num_requests, self._num_kv_heads, self._group_size, self._head_dim)
        keys, values = gathered.view(
            2, self._num_kv_heads, num_requests, group.num_columns, self._head_dim
        ).transpose(1, 2)
        attended = F.scaled_dot_product_attention(
            q[group.start : group.end].view(heads),
            keys,
            values,
            attn_mask=group.mask,
            scale=self._scale,
        )
        return attended.reshape(num_requests, -1, self._head_dim)

    def _extend(self, q: Tensor, pages: Tensor, extend: Extend, out: Tensor) -> None:
        """A request with several query tokens. Mutates: `out`, at its tokens."""
        keys, values = self._gather(pages, extend.gather).view(
            2, self._num_kv_heads, 1, extend.num_columns, self._head_dim
        )
        by_head = (-1, self._num_kv_heads, self._group_size, self._head_dim)
        for part in extend.rows:
            seen = slice(part.key_start, part.key_end)
            attended = F.scaled_dot_product_attention(
                q[part.start : part.end].view(by_head).permute(1, 2, 0, 3),
                keys[:, :, seen].expand(-1, self._group_size, -1, -1),
                values[:, :, seen].expand(-1, self._group_size, -1, -1),
                attn_mask=part.mask,
                is_causal=part.mask is None,
                scale=self._scale,
            )
            out[part.start : part.end].view(by_head).copy_(attended.permute(2, 0, 1, 3))

    def _gather(self, pages: Tensor, rows: Tensor) -> Tensor:
        """Rows of the cache, `[len(rows), page_size * head_dim]`; valid until the next gather."""
        size = len(rows) * self._page_width
        if self._workspace.numel() < size or self._workspace.dtype != pages.dtype:
            self._workspace = torch.empty(size, dtype=pages.dtype)
        out = self._workspace[:size].view(-1, self._page_width)
        return torch.index_select(pages, 0, rows, out=out)


class PagedSdpaProvider:
    """Serves causal attention in every type, with or without a window."""

    name = "paged-sdpa"
    accepts = frozenset({Feature.SLIDING_WINDOW})

    def assess(self, request: AttentionRequest) -> Verdict:
        """Always yes."""
        return Yes(Tier.VENDOR, "gathered pages, fused attention")

    def build(self, request: AttentionRequest, context: BuildContext) -> PagedSdpa:
        """An implementation with a workspace of its own."""
        return PagedSdpa(request)
