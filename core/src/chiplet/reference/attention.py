"""Reference attention: one request at a time, scores written out in full, in float32 or wider."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from chiplet.api import (
    AttentionRequest,
    BuildContext,
    CanonicalLayout,
    Captured,
    Feature,
    ForwardBatch,
    KvLayout,
    Tier,
    Verdict,
    Yes,
)
from chiplet.reference.kv_coding import decode, encode


class RequestRows(NamedTuple):
    """Where a request's tokens and pages are.

    Attributes:
        tokens: its tokens or more.
        is_own: `[tokens] bool`, which of these are its own.
        page_ids: `[num_pages] int64`, its pages or more.
        num_cached: scalar, tokens cached before the new ones.
        tree_bits: `[tokens, 2] int32`, see `chiplet.api.ForwardBatch`; None if no request has them.
    """

    tokens: slice
    is_own: Tensor
    page_ids: Tensor
    num_cached: Tensor
    tree_bits: Tensor | None


@dataclass(frozen=True, slots=True)
class ReferencePlan:
    """What a step needs to attend.

    Attributes:
        page_ids: `[num_tokens] int64`, page that receives each token's key and value.
        offsets: `[num_tokens] int64`, place in that page.
        positions: `[num_tokens] int32`, of each token in its request.
    """

    page_ids: Tensor
    offsets: Tensor
    positions: Tensor
    requests: tuple[RequestRows, ...]


class PlainAttention:
    """softmax(scale * q k^T + mask) v. Source: arXiv:1706.03762, eq. 1."""

    def __init__(self, request: AttentionRequest) -> None:
        self._request = request

    def layouts(self) -> tuple[KvLayout, ...]:
        """The canonical layout only."""
        return (CanonicalLayout(),)

    def plan(self, batch: ForwardBatch, layout: KvLayout) -> ReferencePlan:
        """Find each request's queries and pages, in tensor operations alone.

        Where the host does not know the lengths, every token is tried against every request and
        the mask decides: slow, and correct.
        """
        page_size = self._request.kv.page_size
        tokens = torch.arange(batch.num_tokens, device=batch.token_ids.device)
        pages = batch.page_table.long()
        requests: list[RequestRows] = []
        for index, (rows, num_pages) in enumerate(_extents(batch, page_size)):
            start, end = batch.query_starts[index], batch.query_starts[index + 1]
            is_own = (tokens[rows] >= start) & (tokens[rows] < end)
            num_cached = batch.kv_lengths[index] - (end - start)
            bits = None if batch.tree_bits is None else batch.tree_bits[rows]
            requests.append(RequestRows(rows, is_own, pages[index, :num_pages], num_cached, bits))
        kv_rows = batch.kv_rows.long()
        return ReferencePlan(
            torch.div(kv_rows, page_size, rounding_mode="floor"),
            kv_rows % page_size,
            batch.positions,
            tuple(requests),
        )

    def run(self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, plan: ReferencePlan) -> Tensor:
        """Write, then attend; see `chiplet.api.AttentionImpl.run`."""
        return self._run(q, k, v, kv, plan, None)

    def run_with_sinks(
        self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, plan: ReferencePlan, sinks: Tensor
    ) -> Tensor:
        """Write, then attend; see `chiplet.api.SinkAttention.run_with_sinks`."""
        return self._run(q, k, v, kv, plan, sinks)

    def _run(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        kv: Tensor,
        plan: ReferencePlan,
        sinks: Tensor | None,
    ) -> Tensor:
        coding = self._request.kv.coding
        for index, new in enumerate((k, v)[: self._request.kv.num_planes]):
            row = new.to(kv.dtype) if coding is None else encode(new, coding)
            kv[plan.page_ids, index, plan.offsets] = row
        width = self._request.kv.value_dim or q.shape[2]
        out = torch.zeros(*q.shape[:2], width, dtype=q.dtype, device=q.device)
        for request in plan.requests:
            rows, is_own = request.tokens, request.is_own[:, None, None]
            keys, values = self._cached(kv, request)
            is_visible = self._visible(len(keys), plan.positions[rows], request)
            attended = self._attend(q[rows], keys, values, is_visible, sinks)
            out[rows] = torch.where(is_own, attended, out[rows])
        return out

    def capture(self, q: Tensor, kv: Tensor, plan: ReferencePlan, sinks: Tensor | None) -> Captured:
        """Sort all weights; see `chiplet.api.CapturingAttention.capture`."""
        shape = (*q.shape[:2], self._request.num_captured)
        tokens = torch.full(shape, -1, dtype=torch.int32, device=q.device)
        weights = torch.zeros(shape, dtype=torch.float32, device=q.device)
        for request in plan.requests:
            rows, is_own = request.tokens, request.is_own[:, None, None]
            keys, _ = self._cached(kv, request)
            is_visible = self._visible(len(keys), plan.positions[rows], request)
            shares = self._weights(q[rows], keys, is_visible, sinks).transpose(0, 1)
            shares = shares.masked_fill(~is_visible.unsqueeze(1), -1)
            # There may be fewer tokens than are wanted.
            shares = F.pad(shares, (0, shape[-1]), value=-1.0)
            largest = shares.topk(shape[-1], dim=-1)
            places = largest.indices.int().where(largest.values >= 0, -1)
            tokens[rows] = torch.where(is_own, places, tokens[rows])
            found = largest.values.clamp(min=0).float()
            weights[rows] = torch.where(is_own, found, weights[rows])
        return Captured(tokens, weights)

    def _cached(self, kv: Tensor, request: RequestRows) -> tuple[Tensor, Tensor]:
        """Keys and values of a request's pages, `[columns, num_kv_heads, head_dim]` each."""
        spec, pages = self._request.kv, kv[request.page_ids]
        if spec.coding is not None:
            pages = decode(pages, spec.coding)
        planes = pages.transpose(0, 1).flatten(1, 2)
        return planes[0], planes[0][..., : spec.value_dim] if spec.value_dim else planes[1]

    def _visible(self, num_columns: int, positions: Tensor, request: RequestRows) -> Tensor:
        """Which tokens see which, `[queries, num_columns] bool`.

        Shapes: positions `[queries]`.
        """
        at = positions.unsqueeze(1)
        seen = torch.arange(num_columns, device=positions.device).unsqueeze(0)
        is_visible = seen <= at
        if request.tree_bits is not None:
            is_seen, stands_at = _in_tree(seen, request.num_cached, request.tree_bits)
            has_tree = request.tree_bits.any(dim=1, keepdim=True)
            is_visible = torch.where(has_tree, is_seen, is_visible)
            seen = torch.where(has_tree, stands_at, seen)
        if self._request.window is not None:
            is_visible = is_visible & (seen > at - self._request.window)
        return is_visible & request.is_own.unsqueeze(1)

    def _attend(
        self, q: Tensor, keys: Tensor, values: Tensor, is_visible: Tensor, sinks: Tensor | None
    ) -> Tensor:
        """Tokens of one request; the result of others may be anything.

        Shapes: q `[queries, num_heads, head_dim]`; keys, values `[columns, num_kv_heads,
        head_dim]`, anything past the request's length; is_visible `[queries, columns]`; sinks
        `[num_heads]`; returns the shape of q.
        """
        # What no token sees may be NaN, which not even a weight of zero would hide.
        is_used = is_visible.any(dim=0)[:, None, None]
        weights = self._weights(q, keys, is_visible, sinks)
        values = self._for_heads(values.to(weights.dtype).masked_fill(~is_used, 0))
        return torch.einsum("hqk,khd->qhd", weights, values).to(q.dtype)

    def _weights(self, q: Tensor, keys: Tensor, is_visible: Tensor, sinks: Tensor | None) -> Tensor:
        """What softmax gives each token, `[num_heads, queries, columns]`; shapes: see `_attend`."""
        wide, softcap = torch.promote_types(q.dtype, torch.float32), self._request.softcap
        is_used = is_visible.any(dim=0)[:, None, None]
        keys = self._for_heads(keys.to(wide).masked_fill(~is_used, 0))
        scores = torch.einsum("qhd,khd->hqk", q.to(wide), keys) * self._request.scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        scores = scores.masked_fill(~is_visible, -torch.inf)
        if sinks is not None:
            column = sinks.to(wide)[:, None, None].expand(-1, len(q), 1)
            scores = torch.cat([scores, column], dim=-1)
        return torch.softmax(scores, dim=-1)[..., : len(keys)]

    def _for_heads(self, x: Tensor) -> Tensor:
        """Keys or values, once for each head of queries."""
        return x.repeat_interleave(self._request.num_heads // self._request.num_kv_heads, dim=1)


def _in_tree(columns: Tensor, num_cached: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
    """Which cached tokens a tree's tokens see, and at which positions these stand.

    Shapes: columns `[1, num_columns]`; bits `[queries, 2] int32`; returns two of
    `[queries, num_columns]`, whose positions hold for what is seen.
    """
    places = torch.arange(32, device=bits.device)
    sees_new = ((bits.unsqueeze(2) >> places) & 1).flatten(1)  # [queries, 64]
    # Of all that a token sees, the ones before another are that one's ancestors.
    depths = sees_new.cumsum(dim=1) - 1
    new = columns - num_cached
    place = new.clamp(0, sees_new.shape[1] - 1).expand(len(bits), -1)
    is_seen = (sees_new.gather(1, place) == 1) & (new < sees_new.shape[1])
    stands_at = num_cached + depths.gather(1, place)
    is_cached = new < 0
    return is_cached | is_seen, torch.where(is_cached, columns, stands_at)


def _extents(batch: ForwardBatch, page_size: int) -> Iterator[tuple[slice, int]]:
    """Per request, tokens among which its own are, and pages to look at."""
    lengths = batch.lengths_host
    if lengths is not None:
        ends = np.cumsum(lengths.queries).tolist()
        for end, queries, kv in zip(
            ends, lengths.queries.tolist(), lengths.kv.tolist(), strict=True
        ):
            yield slice(end - queries, end), -(-kv // page_size)
        return
    for index in range(batch.num_requests):
        is_decode = index < batch.num_decodes
        first, end = (index, index + 1) if is_decode else (batch.num_decodes, batch.num_tokens)
        yield slice(first, end), batch.page_table.shape[1]


class ReferenceAttention:
    """Serves every attention request on any device that torch serves."""

    name = "reference"
    accepts = frozenset(Feature)

    def assess(self, request: AttentionRequest) -> Verdict:
        """Always yes, with the lowest score."""
        return Yes(Tier.REFERENCE)

    def build(self, request: AttentionRequest, context: BuildContext) -> PlainAttention:
        """The plain sum."""
        return PlainAttention(request)
