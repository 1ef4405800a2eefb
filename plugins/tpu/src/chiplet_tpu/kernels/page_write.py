"""Rotation of new keys by position and their write into pages, with values, as a Pallas kernel.

Work is cut by page: an item is one page and the rows of it that are new. A page is read, merged
and written back in the place where it was, so that no row is written alone: rows of a page share
the tiles of the device's memory.

Legend: I items, K key heads, P tokens per page, D head dim.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu


class PageItems(NamedTuple):
    """Pages that get new rows. A page may stand in several items only if none of its rows matters.

    Attributes:
        page_ids: `[I] int32`.
        first_rows, end_rows: `[I] int32`, the new rows of each page; equal for padding.
    """

    page_ids: jax.Array
    first_rows: jax.Array
    end_rows: jax.Array


def write_pages(
    kv: jax.Array,
    new: jax.Array,
    cos_sin: jax.Array | None,
    items: PageItems,
    *,
    interpret: bool = False,
) -> jax.Array:
    """The cache with new rows, keys rotated: pairs (i, i + D / 2) turn by the row's angle i.

    The cache is written in place where it is donated.

    Shapes: kv `[pages, K, P, 2 * D]`, keys first; new `[I, K, P, 2 * D]`, keys not yet rotated;
    cos_sin `[I, P, D] float32`, cosines then sines, or None for keys that are rotated already;
    returns the shape of kv.
    Source: arXiv:2104.09864, eq. 34, half-split order.
    """
    num_items, num_kv_heads, page_size, width = new.shape
    page = (1, num_kv_heads, page_size, width)
    at_page = pl.BlockSpec(page, lambda i, page_ids, *_: (page_ids[i], 0, 0, 0))
    specs = [at_page, pl.BlockSpec(page, lambda i, *_: (i, 0, 0, 0))]
    arrays = [kv, new]
    if cos_sin is not None:
        specs.append(pl.BlockSpec((1, page_size, width // 2), lambda i, *_: (i, 0, 0)))
        arrays.append(cos_sin)
    return pl.pallas_call(
        _rotating_kernel if cos_sin is not None else _plain_kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(num_items,),
            in_specs=specs,
            out_specs=at_page,
        ),
        out_shape=jax.ShapeDtypeStruct(kv.shape, kv.dtype),
        input_output_aliases={3: 0},  # scalar arguments count
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",)),
        interpret=interpret,
        name="chiplet_write_pages",
    )(items.page_ids, items.first_rows, items.end_rows, *arrays)


def _plain_kernel(
    page_ids: Any, first_rows: Any, end_rows: Any, kv: Any, new: Any, out: Any
) -> None:
    item = pl.program_id(0)
    _, num_kv_heads, page_size, width = new.shape
    rows = lax.broadcasted_iota(jnp.int32, (page_size, width), 0)
    is_new = (rows >= first_rows[item]) & (rows < end_rows[item])
    for head in range(num_kv_heads):
        out[0, head] = jnp.where(is_new, new[0, head], kv[0, head])


def _rotating_kernel(
    page_ids: Any, first_rows: Any, end_rows: Any, kv: Any, new: Any, cos_sin: Any, out: Any
) -> None:
    item = pl.program_id(0)
    _, num_kv_heads, page_size, width = new.shape
    head_dim, half = width // 2, width // 4
    table = cos_sin[0]
    cos = jnp.concatenate([table[:, :half], table[:, :half]], axis=1)
    sin = jnp.concatenate([table[:, half:], table[:, half:]], axis=1)
    rows = lax.broadcasted_iota(jnp.int32, (page_size, width), 0)
    is_new = (rows >= first_rows[item]) & (rows < end_rows[item])
    for head in range(num_kv_heads):
        row = new[0, head].astype(jnp.float32)
        key = row[:, :head_dim]
        turned = jnp.concatenate([-key[:, half:], key[:, :half]], axis=1)
        merged = jnp.concatenate([key * cos + turned * sin, row[:, head_dim:]], axis=1)
        out[0, head] = jnp.where(is_new, merged, kv[0, head].astype(jnp.float32)).astype(out.dtype)
