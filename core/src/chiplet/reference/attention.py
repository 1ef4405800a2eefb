"""Reference attention: one request at a time, scores written out in full, in float32 or wider."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from chiplet.api import (
    AttentionRequest,
    BuildContext,
    Feature,
    ForwardBatch,
    KvLayout,
    KvSpec,
    Tier,
    Verdict,
    Yes,
)


class CanonicalLayout:
    """Pages as `[num_pages, 2, page_size, num_kv_heads, head_dim]`, keys first."""

    name = "canonical"

    def shape(self, spec: KvSpec, num_pages: int) -> tuple[int, ...]:
        """Shape of all pages of one layer."""
        return (num_pages, 2, spec.page_size, spec.num_kv_heads, spec.head_dim)

    def page_bytes(self, spec: KvSpec) -> int:
        """Bytes of one page of one layer."""
        return 2 * spec.page_size * spec.num_kv_heads * spec.head_dim * spec.dtype.size_bytes

    def to_canonical(self, kv: Tensor, page_ids: Tensor, spec: KvSpec) -> Tensor:
        """Copy pages out."""
        return kv[page_ids]

    def from_canonical(self, canonical: Tensor, kv: Tensor, page_ids: Tensor, spec: KvSpec) -> None:
        """Copy pages in. Mutates: `kv`."""
        kv[page_ids] = canonical


@dataclass(frozen=True, slots=True)
class ReferencePlan:
    """What a step needs to attend.

    Attributes:
        page_ids: `[num_tokens] int64`, page that receives each token's key and value.
        offsets: `[num_tokens] int64`, place in that page.
        requests: per request: first query token, query length, KV length, its pages
            `[num_pages] int64`.
    """

    page_ids: Tensor
    offsets: Tensor
    requests: tuple[tuple[int, int, int, Tensor], ...]


class PlainAttention:
    """softmax(scale * q k^T + mask) v. Source: arXiv:1706.03762, eq. 1."""

    def __init__(self, request: AttentionRequest) -> None:
        self._request = request

    def layouts(self) -> tuple[KvLayout, ...]:
        """The canonical layout only."""
        return (CanonicalLayout(),)

    def plan(self, batch: ForwardBatch, layout: KvLayout) -> ReferencePlan:
        """Find each request's queries and pages."""
        page_size = self._request.kv.page_size
        starts = np.concatenate([[0], np.cumsum(batch.query_lengths_host)])
        requests = tuple(
            (
                int(starts[index]),
                int(batch.query_lengths_host[index]),
                int(kv_length),
                batch.page_table[index, : -(-int(kv_length) // page_size)].long(),
            )
            for index, kv_length in enumerate(batch.kv_lengths_host)
        )
        return ReferencePlan(
            torch.div(batch.kv_rows, page_size, rounding_mode="floor"),
            batch.kv_rows % page_size,
            requests,
        )

    def run(self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, plan: ReferencePlan) -> Tensor:
        """Write, then attend; see `chiplet.api.AttentionImpl.run`."""
        kv[plan.page_ids, 0, plan.offsets] = k.to(kv.dtype)
        kv[plan.page_ids, 1, plan.offsets] = v.to(kv.dtype)
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        for start, query_length, kv_length, page_ids in plan.requests:
            queries = slice(start, start + query_length)
            pages = kv[page_ids]  # [num_pages, 2, page_size, num_kv_heads, head_dim]
            keys, values = pages.transpose(0, 1).flatten(1, 2)[:, :kv_length]
            out[queries] = self._attend(q[queries], keys, values)
        return out

    def _attend(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """One request.

        Shapes: q `[queries, num_heads, head_dim]`; keys, values `[length, num_kv_heads,
        head_dim]`; returns the shape of q.
        """
        wide = torch.promote_types(q.dtype, torch.float32)
        group = self._request.num_heads // self._request.num_kv_heads
        keys = keys.to(wide).repeat_interleave(group, dim=1)
        values = values.to(wide).repeat_interleave(group, dim=1)
        scores = torch.einsum("qhd,khd->hqk", q.to(wide), keys) * self._request.scale
        length, num_queries = keys.shape[0], q.shape[0]
        at = torch.arange(length - num_queries, length, device=q.device).unsqueeze(1)
        seen = torch.arange(length, device=q.device).unsqueeze(0)
        is_visible = seen <= at
        if self._request.window is not None:
            is_visible &= seen > at - self._request.window
        weights = torch.softmax(scores.masked_fill(~is_visible, -torch.inf), dim=-1)
        return torch.einsum("hqk,khd->qhd", weights, values).to(q.dtype)


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
