"""The kernel: softmax attention over a few pages at a time, in NumPy.

Each slice of pages gives a largest score, a sum of weights and a weighted sum of values. Slices are
merged by rescaling what came before to the new largest score, so that no score is kept longer than
its slice. Source: arXiv:1805.02867, algorithm 3.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SLICE_TOKENS = 256
"""Tokens of the cache that are looked at together; not tuned."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Slice:
    """A few pages of one request, in float32.

    Attributes:
        keys: `[pages, num_kv_heads, head_dim, page_size]`.
        values: `[pages, num_kv_heads, page_size, head_dim]`.
        first: position of the first token.
    """

    keys: Floats
    values: Floats
    first: int


def attend(
    queries: Floats,
    positions: NDArray[np.int64],
    slices: Iterator[Slice],
    *,
    scale: float,
    window: int | None,
) -> Floats:
    """Attention of one request's tokens.

    Shapes: queries `[num_kv_heads, group, num_queries, head_dim]`; positions `[num_queries]`;
    returns the shape of queries.
    Mutates: keys and values of the slices, where no token may look.
    """
    heads, group, num_queries, head_dim = queries.shape
    rows = queries.reshape(heads, group * num_queries, head_dim)
    at = np.tile(positions, group)[:, None, None]  # [rows, 1, 1]
    largest = np.full((heads, rows.shape[1], 1), -np.inf, np.float32)
    total = np.zeros_like(largest)
    result = np.zeros_like(rows)
    for each in slices:
        pages, _, _, page_size = each.keys.shape
        columns = each.first + np.arange(pages * page_size).reshape(1, pages, page_size)
        is_visible = columns <= at
        if window is not None:
            is_visible &= columns > at - window
        # What nobody sees may be NaN, which not even a weight of zero would hide.
        is_used = is_visible.any(axis=0)[:, None]  # [pages, 1, page_size]
        is_unused = np.broadcast_to(~is_used, each.values.shape[:3])
        each.keys.swapaxes(2, 3)[is_unused] = 0
        each.values[is_unused] = 0
        # Scaled here: queries scaled before would be rounded, which large scores make visible.
        scores = np.matmul(rows, each.keys) * np.float32(scale)  # [pages, heads, rows, page_size]
        scores = np.where(is_visible.transpose(1, 0, 2)[:, None], scores, -np.inf)
        now = np.maximum(largest, scores.max(axis=(0, 3))[..., None])
        # A row that has seen nothing yet has no largest score to subtract.
        shift = np.where(np.isfinite(now), now, 0)
        weights = np.exp(scores - shift)
        shrunk = np.exp(largest - shift)
        total = total * shrunk + weights.sum(axis=(0, 3))[..., None]
        result = result * shrunk + np.matmul(weights, each.values).sum(axis=0)
        largest = now
    result /= np.maximum(total, np.float32(1e-30))
    return result.reshape(queries.shape)
