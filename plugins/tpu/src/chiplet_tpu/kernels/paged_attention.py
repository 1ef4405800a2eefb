"""Attention over paged keys and values, as a Pallas kernel.

One kernel serves decode and prefill. Queries come as work items: some consecutive queries of one
request, and all heads. Decode has one query per item, prefill a block of them. An item walks over
the pages of its request, several at a time, in two buffers: while one is computed on, the other is
filled, if need be with the first pages of the next item.

Legend: I items, Q queries per item, G query heads per key head, R = Q * G rows, K key heads,
D head dim, P tokens per page, B tokens per buffer.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

_MASKED = -1e30
_LANES = 128


class Items(NamedTuple):
    """Work items of one step.

    Attributes:
        requests: `[I] int32`, row of the page table.
        positions: `[I] int32`, position of the item's first query in its request.
        lengths: `[I] int32`, queries in the item; 0 for padding, whose output is anything finite.
    """

    requests: jax.Array
    positions: jax.Array
    lengths: jax.Array


class _Shape(NamedTuple):
    """What the kernel knows when it is compiled."""

    group_size: int
    head_dim: int
    num_kv_heads: int
    page_size: int
    block_pages: int
    max_pages: int
    window: int | None
    scale: float


def paged_attention(
    q: jax.Array,
    kv: jax.Array,
    page_table: jax.Array,
    items: Items,
    *,
    group_size: int,
    scale: float,
    window: int | None = None,
    block_tokens: int = 128,
    interpret: bool = False,
) -> jax.Array:
    """softmax(scale * q k^T + mask) v, causal, over the pages of each item's request.

    A query at position p sees positions 0 to p, or p - window + 1 to p.

    Shapes: q `[I, K, R, D]`, row r is query r // G of the item; kv `[pages, K, P, 2 * D]`, keys
    first; page_table `[requests, max_pages] int32`; returns the shape of q.

    Source: online softmax, arXiv:1805.02867, algorithm 3; paging, arXiv:2309.06180.
    """
    num_items, num_kv_heads, num_rows, head_dim = q.shape
    page_size = kv.shape[2]
    shape = _Shape(
        group_size=group_size,
        head_dim=head_dim,
        num_kv_heads=num_kv_heads,
        page_size=page_size,
        block_pages=max(1, min(block_tokens // page_size, page_table.shape[1])),
        max_pages=page_table.shape[1],
        window=window,
        scale=scale,
    )
    # Rows of a vector register: 8 of 4 bytes.
    padded_rows = _round_up(num_rows, 32 // q.dtype.itemsize)
    padded = jnp.pad(q, ((0, 0), (0, 0), (0, padded_rows - num_rows), (0, 0)))
    row_block = pl.BlockSpec((1, num_kv_heads, padded_rows, head_dim), lambda i, *_: (i, 0, 0, 0))
    buffer = (2, num_kv_heads, shape.block_pages * page_size, 2 * head_dim)
    out = pl.pallas_call(
        functools.partial(_kernel, shape=shape),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=(num_items,),
            in_specs=[row_block, pl.BlockSpec(memory_space=pl.ANY)],
            out_specs=row_block,
            scratch_shapes=[
                pltpu.VMEM(buffer, kv.dtype),
                pltpu.SemaphoreType.DMA((2,)),
                pltpu.SMEM((1,), jnp.int32),
                pltpu.VMEM((num_kv_heads, padded_rows, _LANES), jnp.float32),
                pltpu.VMEM((num_kv_heads, padded_rows, _LANES), jnp.float32),
                pltpu.VMEM((num_kv_heads, padded_rows, 2 * head_dim), jnp.float32),
            ],
        ),
        out_shape=jax.ShapeDtypeStruct(padded.shape, q.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",)),
        cost_estimate=_cost(q, kv, shape),
        interpret=interpret,
        name="chiplet_paged_attention",
    )(items.requests, items.positions, items.lengths, page_table.reshape(-1), padded, kv)
    return out[:, :, :num_rows]


class _Pages:
    """Copies of an item's pages into the buffers."""

    def __init__(self, kv: Any, buffers: Any, semaphores: Any, tables: Any, shape: _Shape) -> None:
        self._kv = kv
        self._buffers = buffers
        self._semaphores = semaphores
        self._requests, self._positions, self._lengths, self._page_table = tables
        self._shape = shape

    def end(self, item: Any) -> Any:
        """Keys that the item's last query sees, counted from position 0; at least 1."""
        return self._positions[item] + jnp.maximum(self._lengths[item], 1)

    def blocks(self, item: Any) -> tuple[Any, Any]:
        """First and last-plus-one block of pages that the item reads."""
        block_tokens = self._shape.block_pages * self._shape.page_size
        end = lax.div(self.end(item) + (block_tokens - 1), block_tokens)
        if self._shape.window is None:
            return 0, end
        first_key = jnp.maximum(self._positions[item] - (self._shape.window - 1), 0)
        return lax.div(first_key, block_tokens), end

    def start(self, item: Any, block: Any, buffer: Any) -> None:
        """Begin to fill a buffer."""
        self._for_pages(item, block, buffer, lambda copy: copy.start())

    def wait(self, item: Any, block: Any, buffer: Any) -> None:
        """Wait until a buffer is full."""
        self._for_pages(item, block, buffer, lambda copy: copy.wait())

    def _for_pages(self, item: Any, block: Any, buffer: Any, do: Any) -> None:
        shape = self._shape
        used_pages = lax.div(self.end(item) + (shape.page_size - 1), shape.page_size)
        row = self._requests[item] * shape.max_pages
        for place in range(shape.block_pages):
            index = block * shape.block_pages + place

            @pl.when(index < used_pages)
            def _(place: int = place, index: Any = index) -> None:
                rows = pl.ds(place * shape.page_size, shape.page_size)
                do(
                    pltpu.make_async_copy(
                        self._kv.at[self._page_table[row + index]],
                        self._buffers.at[buffer, :, rows, :],
                        self._semaphores.at[buffer],
                    )
                )


def _kernel(
    requests: Any,
    positions: Any,
    lengths: Any,
    page_table: Any,
    q: Any,
    kv: Any,
    out: Any,
    buffers: Any,
    semaphores: Any,
    current: Any,
    peak: Any,
    mass: Any,
    total: Any,
    *,
    shape: _Shape,
) -> None:
    """One item. `current[0]` is the buffer that holds, or will hold, its first block."""
    item, num_items = pl.program_id(0), pl.num_programs(0)
    tables = (requests, positions, lengths, page_table)
    pages = _Pages(kv, buffers, semaphores, tables, shape)
    first, end = pages.blocks(item)

    @pl.when(item == 0)
    def _() -> None:
        current[0] = 0
        pages.start(item, first, 0)

    peak[...] = jnp.full_like(peak, _MASKED)
    mass[...] = jnp.zeros_like(mass)
    total[...] = jnp.zeros_like(total)

    def visit(block: Any, buffer: Any) -> Any:
        other = 1 - buffer

        @pl.when(block + 1 < end)
        def _() -> None:
            pages.start(item, block + 1, other)

        @pl.when((block + 1 == end) & (item + 1 < num_items))
        def _() -> None:
            pages.start(item + 1, pages.blocks(item + 1)[0], other)

        pages.wait(item, block, buffer)
        for head in range(shape.num_kv_heads):
            _attend(
                q[0, head],
                buffers[buffer, head],
                (peak.at[head], mass.at[head], total.at[head]),
                (block, positions[item], pages.end(item)),
                shape,
            )
        return other

    current[0] = lax.fori_loop(first, end, visit, current[0])
    for head in range(shape.num_kv_heads):
        # Rows beyond the item's queries may have seen nothing.
        seen = jnp.maximum(mass[head][:, :1], 1e-30)
        out[0, head] = (total[head][:, shape.head_dim :] / seen).astype(out.dtype)


def _attend(q: Any, kv: Any, state: Any, place: Any, shape: _Shape) -> None:
    """Add one block of one head's keys and values to the running softmax.

    Shapes: q `[R, D]`; kv `[B, 2 * D]`; state: running maximum and mass `[R, 128] float32`, all
    lanes alike, and sum of values `[R, 2 * D] float32`, of which the second half counts.
    Mutates: state.
    """
    peak, mass, total = state
    block, first_position, end = place
    block_tokens = kv.shape[0]
    precision = lax.Precision.HIGHEST if q.dtype == jnp.float32 else lax.Precision.DEFAULT
    first_key = block * block_tokens
    row_keys = first_key + lax.broadcasted_iota(jnp.int32, kv.shape, 0)
    # Rows that nobody wrote may be NaN, which no weight of 0 would silence.
    kv = jnp.where(row_keys < end, kv.astype(jnp.float32), 0.0).astype(q.dtype)
    scores = shape.scale * lax.dot_general(
        q,
        kv[:, : shape.head_dim],
        (((1,), (1,)), ((), ())),
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    keys = first_key + lax.broadcasted_iota(jnp.int32, scores.shape, 1)
    rows = lax.broadcasted_iota(jnp.int32, scores.shape, 0)
    at = first_position + lax.div(rows, shape.group_size)
    is_visible = (keys <= at) & (keys < end)
    if shape.window is not None:
        is_visible &= keys > at - shape.window
    scores = jnp.where(is_visible, scores, _MASKED)
    new_peak = jnp.maximum(peak[...], scores.max(axis=1, keepdims=True))
    weights = jnp.where(is_visible, jnp.exp(scores - new_peak[:, :1]), 0.0)
    kept = jnp.exp(peak[...] - new_peak)
    mass[...] = mass[...] * kept + weights.sum(axis=1, keepdims=True)
    # Keys are summed along with values: no lane has to move.
    added = lax.dot_general(
        weights.astype(q.dtype),
        kv,
        (((1,), (0,)), ((), ())),
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    total[...] = total[...] * kept[:, :1] + added
    peak[...] = new_peak


def _cost(q: jax.Array, kv: jax.Array, shape: _Shape) -> pl.CostEstimate:
    """What the compiler may assume: every item reads all pages that its table could name."""
    num_items, num_kv_heads, num_rows, head_dim = q.shape
    keys = num_items * shape.max_pages * shape.page_size
    return pl.CostEstimate(
        flops=4 * keys * num_kv_heads * num_rows * head_dim,
        bytes_accessed=2 * q.size * q.dtype.itemsize
        + keys * num_kv_heads * 2 * head_dim * kv.dtype.itemsize,
        transcendentals=keys * num_kv_heads * num_rows,
    )


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
