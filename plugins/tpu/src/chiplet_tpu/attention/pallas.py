"""Attention by this plugin's own kernels: decode, chunked prefill, window, head dims 64 to 256."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from torch import Tensor

from chiplet.api import (
    AttentionRequest,
    BuildContext,
    DeviceProbe,
    Dtype,
    Feature,
    ForwardBatch,
    KvLayout,
    No,
    Tier,
    Verdict,
    Yes,
)
from chiplet_tpu.attention.items import PageRuns, QueryItems, cut_pages, cut_queries
from chiplet_tpu.attention.layout import HeadFirstLayout
from chiplet_tpu.attention.refusals import refused_head_dim, refused_page_size
from chiplet_tpu.chips import is_emulated
from chiplet_tpu.compilation.arrays import array_of, assign, wrap
from chiplet_tpu.kernels.page_write import PageItems, write_pages
from chiplet_tpu.kernels.paged_attention import Items, paged_attention

HEAD_DIMS = (64, 96, 128, 256)
_TILE_ROWS = {Dtype.FLOAT32: 8, Dtype.BFLOAT16: 16}
_QUERIES_PER_ITEM = 32


class PallasPlan(NamedTuple):
    """What a step needs to write and attend."""

    items: QueryItems
    runs: PageRuns
    page_table: Tensor


class PallasAttention:
    """The kernels on pages side by side; interpreted where there is no chip."""

    def __init__(self, request: AttentionRequest, *, interpret: bool) -> None:
        self._request = request
        self._interpret = interpret
        self._attend = partial(
            paged_attention,
            group_size=request.num_heads // request.num_kv_heads,
            scale=request.scale,
            window=request.window,
            interpret=interpret,
        )

    def layouts(self) -> tuple[KvLayout, ...]:
        """Keys and values of a head side by side."""
        return (HeadFirstLayout(),)

    def plan(self, batch: ForwardBatch, layout: KvLayout) -> PallasPlan:
        """Cut queries and pages into the kernels' items."""
        return PallasPlan(
            cut_queries(batch, _QUERIES_PER_ITEM),
            cut_pages(batch, self._request.kv.page_size),
            batch.page_table,
        )

    def run(self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, plan: PallasPlan) -> Tensor:
        """Write, then attend; see `chiplet.api.AttentionImpl.run`."""
        pages = self._write(array_of(kv), array_of(k), array_of(v), plan.runs)
        assign(kv, pages)
        items = QueryItems(*map(array_of, plan.items))
        num_items, num_queries = items.tokens.shape
        num_kv_heads, head_dim = self._request.num_kv_heads, self._request.head_dim
        # [items, queries, num_kv_heads, group, head_dim], then heads first.
        rows = array_of(q)[items.tokens]
        rows = rows.reshape(num_items, num_queries, num_kv_heads, -1, head_dim)
        rows = rows.transpose(0, 2, 1, 3, 4).reshape(num_items, num_kv_heads, -1, head_dim)
        out = self._attend(
            rows,
            pages,
            array_of(plan.page_table),
            Items(items.requests, items.positions, items.lengths),
        )
        out = out.reshape(num_items, num_kv_heads, num_queries, -1, head_dim)
        out = out.transpose(0, 2, 1, 3, 4).reshape(num_items * num_queries, -1, head_dim)
        return wrap(out[items.places])

    def _write(self, kv: jax.Array, k: jax.Array, v: jax.Array, runs: PageRuns) -> jax.Array:
        """The pages with new keys and values."""
        page_ids, first_rows, end_rows, tokens = map(array_of, runs)
        rows = jnp.concatenate([k, v], axis=-1).astype(kv.dtype)[tokens]
        new = rows.transpose(0, 2, 1, 3)  # [items, num_kv_heads, page_size, 2 * head_dim]
        items = PageItems(page_ids, first_rows, end_rows)
        return write_pages(kv, new, None, items, interpret=self._interpret)


class PallasAttentionProvider:
    """Serves the head dims that models have, in bfloat16 and float32."""

    name = "pallas"
    accepts = frozenset({Feature.SLIDING_WINDOW})

    def __init__(self, device: DeviceProbe) -> None:
        self._is_emulated = is_emulated(device)

    def assess(self, request: AttentionRequest) -> Verdict:
        """Yes where pages are made of whole tiles."""
        rows = _TILE_ROWS.get(request.dtype)
        if rows is None:
            return No.because("dtype", f"dtype {request.dtype}; allowed: float32, bfloat16")
        is_whole = request.kv.page_size % rows == 0
        refusal = refused_head_dim(request, HEAD_DIMS) or refused_page_size(
            request, is_allowed=is_whole, allowed=f"multiples of {rows}"
        )
        if refusal is not None:
            return refusal
        if self._is_emulated:
            return Yes(Tier.REFERENCE - 1, "interpreted: to be pinned for tests only")
        return Yes(Tier.VENDOR, "reads the pages that a request has")

    def build(self, request: AttentionRequest, context: BuildContext) -> PallasAttention:
        """The kernels."""
        return PallasAttention(request, interpret=self._is_emulated)
