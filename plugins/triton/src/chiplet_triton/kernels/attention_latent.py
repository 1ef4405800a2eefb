"""Attention whose values are parts of their keys: one row a token, read once for both.

Pages are `[num_pages, PAGE_SIZE, HEAD_DIM]`, and a value is the first VALUE_DIM elements of its
row. Scores are kept in base 2. New rows are in their pages before attention begins, so that cached
and new ones are read alike.
"""

import triton
import triton.language as tl

from chiplet_triton.kernels.attention_extend import find_request
from chiplet_triton.kernels.caching import bounded, to_cache
from chiplet_triton.kernels.overlap import let_next_start, wait_for_inputs


@triton.jit
def latent_write_kernel(
    rows_ptr,
    kv_ptr,
    kv_rows_ptr,
    row_stride,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Writes a token's row. Grid: tokens."""
    token = tl.program_id(0).to(tl.int64)
    dims = tl.arange(0, BLOCK_DIM)
    is_dim = dims < HEAD_DIM
    let_next_start(OVERLAP)
    wait_for_inputs(OVERLAP)
    target = tl.load(kv_rows_ptr + token).to(tl.int64) * HEAD_DIM
    row = tl.load(rows_ptr + token * row_stride + dims, mask=is_dim)
    tl.store(kv_ptr + target + dims, to_cache(row, kv_ptr.dtype.element_ty), mask=is_dim)


@triton.jit(
    do_not_specialize=["num_requests", "num_splits", "window", "table_stride"],
    do_not_specialize_on_alignment=[
        "page_table_ptr",
        "query_starts_ptr",
        "kv_lengths_ptr",
        "positions_ptr",
        "tree_bits_ptr",
    ],
)
def latent_kernel(
    q_ptr,
    kv_ptr,
    page_table_ptr,
    query_starts_ptr,
    kv_lengths_ptr,
    positions_ptr,
    tree_bits_ptr,
    sinks_ptr,
    out_ptr,
    partial_ptr,
    partial_lse_ptr,
    num_requests,
    scale_log2,
    score_factor,
    num_splits,
    window,
    table_stride,
    q_stride,
    q_head_stride,
    PAGE_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
    BLOCK_REST: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    HAS_TREE: tl.constexpr,
    IS_DECODE: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Grid: blocks of query tokens times blocks of heads, splits.

    Blocks of decodes are one request each, those of chunks as `find_request` says. Programs of one
    block of tokens are neighbours, so that all heads find its rows in the cache of the device.
    """
    TOKENS: tl.constexpr = BLOCK_ROWS // BLOCK_HEADS
    HEAD_BLOCKS: tl.constexpr = (NUM_HEADS + BLOCK_HEADS - 1) // BLOCK_HEADS
    block = tl.program_id(0) // HEAD_BLOCKS
    head_block = tl.program_id(0) % HEAD_BLOCKS
    split = tl.program_id(1)
    compute = q_ptr.dtype.element_ty
    let_next_start(OVERLAP)
    wait_for_inputs(OVERLAP)
    if IS_DECODE:
        request = block
        query_start = block
        query_length = 1
        first_query = 0
    else:
        # Later blocks of a request have more keys: they go first.
        block = tl.num_programs(0) // HEAD_BLOCKS - 1 - block
        request = find_request(block, query_starts_ptr, num_requests, TOKENS)
        query_start = tl.load(query_starts_ptr + request)
        query_length = tl.load(query_starts_ptr + request + 1) - query_start
        first_query = (block - query_start // TOKENS - request) * TOKENS
        if first_query >= query_length:
            return
    length = tl.load(kv_lengths_ptr + request)
    cached = length - query_length
    rows = tl.arange(0, BLOCK_ROWS)
    dims = tl.arange(0, BLOCK_VALUE)
    rest_dims = tl.arange(0, BLOCK_REST)
    is_dim = dims < VALUE_DIM
    is_rest = rest_dims < HEAD_DIM - VALUE_DIM
    queries = first_query + rows // BLOCK_HEADS
    heads = head_block * BLOCK_HEADS + rows % BLOCK_HEADS
    is_row = (queries < query_length) & (heads < NUM_HEADS)
    tokens = (query_start + queries).to(tl.int64)
    q_source = q_ptr + tokens * q_stride + heads * q_head_stride
    is_loaded = is_row[:, None] & is_dim[None, :]
    q = tl.load(q_source[:, None] + dims[None, :], mask=is_loaded, other=0.0)
    if HEAD_DIM > VALUE_DIM:
        is_loaded = is_row[:, None] & is_rest[None, :]
        q_rest = tl.load(
            q_source[:, None] + VALUE_DIM + rest_dims[None, :], mask=is_loaded, other=0.0
        )
    places = cached + queries  # of each row: what it sees lies before it, or there
    positions = places
    end = cached + tl.minimum(first_query + TOKENS, query_length)
    lowest = cached + first_query
    if HAS_TREE:
        is_query = queries < query_length
        low = tl.load(tree_bits_ptr + 2 * tokens, mask=is_query, other=0)
        high = tl.load(tree_bits_ptr + 2 * tokens + 1, mask=is_query, other=0)
        positions = tl.load(positions_ptr + tokens, mask=is_query, other=0)
        is_tree = (tl.load(tree_bits_ptr + 2 * query_start) != 0) | (
            tl.load(tree_bits_ptr + 2 * query_start + 1) != 0
        )
        end = tl.where(is_tree, length, end)
        lowest = tl.where(is_tree, cached, lowest)
    start = 0
    if HAS_WINDOW:
        start = tl.maximum(lowest - window + 1, 0)
    blocks_per_split = tl.cdiv(tl.cdiv(end - start, BLOCK_KEYS), num_splits)
    split_start = start + split * blocks_per_split * BLOCK_KEYS
    split_end = tl.minimum(split_start + blocks_per_split * BLOCK_KEYS, end)

    peak = tl.full([BLOCK_ROWS], -1.0e30, tl.float32)
    total = tl.zeros([BLOCK_ROWS], tl.float32)
    if HAS_SINKS:  # noqa: SIM102 - what comes next is known at launch only
        if split == 0:
            sinks = tl.load(sinks_ptr + heads, mask=is_row, other=0.0)
            peak = sinks * 1.4426950408889634
            total += 1.0
    acc = tl.zeros([BLOCK_ROWS, BLOCK_VALUE], tl.float32)
    table = page_table_ptr + request.to(tl.int64) * table_stride
    inner = tl.arange(0, BLOCK_KEYS)
    # Pages are read one block ahead: rows do not wait for them.
    at = split_start + inner
    page = tl.load(table + at // PAGE_SIZE, mask=at < split_end, other=0)
    for first in range(split_start, split_end, BLOCK_KEYS):
        keys = first + inner
        is_key = keys < split_end
        source = kv_ptr + (page.to(tl.int64) * PAGE_SIZE + keys % PAGE_SIZE) * HEAD_DIM
        at = keys + BLOCK_KEYS
        page = tl.load(table + at // PAGE_SIZE, mask=at < split_end, other=0)
        is_key_dim = is_key[:, None] & is_dim[None, :]
        k = tl.load(source[:, None] + dims[None, :], mask=is_key_dim, other=0.0).to(compute)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        if HEAD_DIM > VALUE_DIM:
            is_rest_key = is_key[:, None] & is_rest[None, :]
            k_rest = tl.load(
                source[:, None] + VALUE_DIM + rest_dims[None, :], mask=is_rest_key, other=0.0
            ).to(compute)
            scores = tl.dot(q_rest, tl.trans(k_rest), scores, input_precision=PRECISION)
        is_seen = keys[None, :] <= places[:, None]
        if HAS_TREE:
            new = keys - cached
            word = tl.where((new < 32)[None, :], low[:, None], high[:, None])
            is_bit = ((word >> (new & 31)[None, :]) & 1) != 0
            is_seen = tl.where(is_tree & (new >= 0)[None, :], is_bit, is_seen)
        if HAS_WINDOW:
            at = keys
            if HAS_TREE:
                is_new = is_key & (keys >= cached)
                at = tl.load(positions_ptr + query_start + keys - cached, mask=is_new, other=0)
                at = tl.where(is_new, at, keys)
            is_seen &= at[None, :] > positions[:, None] - window
        is_seen &= is_key[None, :]
        scores = bounded(scores, score_factor, HAS_SOFTCAP)
        scores = tl.where(is_seen, scores, -1.0e30)
        new_peak = tl.maximum(peak, tl.max(scores, axis=1) * scale_log2)
        shrink = tl.exp2(peak - new_peak)
        weights = tl.exp2(scores * scale_log2 - new_peak[:, None])
        weights = tl.where(is_seen, weights, 0.0)
        total = total * shrink + tl.sum(weights, axis=1)
        acc = acc * shrink[:, None]
        acc = tl.dot(weights.to(compute), k, acc, input_precision=PRECISION)
        peak = new_peak

    out = acc / tl.where(total > 0, total, 1.0)[:, None]
    is_stored = is_row[:, None] & is_dim[None, :]
    at_row = tokens * NUM_HEADS + heads
    if IS_SPLIT:
        at_row = at_row * num_splits + split
        target = partial_ptr + at_row[:, None] * VALUE_DIM + dims[None, :]
        tl.store(target, out, mask=is_stored)
        lse = tl.where(total > 0, peak + tl.log2(total), -1.0e30)
        tl.store(partial_lse_ptr + at_row, lse, mask=is_row)
    else:
        target = out_ptr + at_row[:, None] * VALUE_DIM + dims[None, :]
        tl.store(target, out.to(out_ptr.dtype.element_ty), mask=is_stored)
