"""Causal attention of chunks of several tokens over pages that already hold them.

Pages are `[num_pages, 2, PAGE_SIZE, NUM_KV_HEADS, HEAD_DIM]`. Scores are kept in base 2. The query
heads that share a KV head are rows of one tile, so that each key is read once for all of them.
"""

import triton
import triton.language as tl


@triton.jit
def _find_request(block, query_starts_ptr, num_requests, TOKENS_PER_BLOCK: tl.constexpr):
    """The request whose blocks hold `block`, where request i begins at block
    query_starts[i] // TOKENS_PER_BLOCK + i.
    """
    low = 0
    high = num_requests
    while high - low > 1:
        middle = (low + high) // 2
        first = tl.load(query_starts_ptr + middle) // TOKENS_PER_BLOCK + middle
        if first <= block:
            low = middle
        else:
            high = middle
    return low


@triton.jit
def _attend_keys(
    acc,
    total,
    peak,
    q,
    positions,
    kv_ptr,
    table,
    kv_head,
    first_key,
    last_key,
    key_end,
    scale_log2,
    window,
    PAGE_SIZE: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    IS_MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Keys `first_key` to `last_key`, block by block; unmasked ones are seen by every row."""
    head_size: tl.constexpr = NUM_KV_HEADS * HEAD_DIM
    compute = q.dtype
    dims = tl.arange(0, BLOCK_DIM)
    for first in range(first_key, last_key, BLOCK_KEYS):
        keys = first + tl.arange(0, BLOCK_KEYS)
        if IS_MASKED:
            is_key = keys < key_end
            page = tl.load(table + keys // PAGE_SIZE, mask=is_key, other=0).to(tl.int64)
        else:
            page = tl.load(table + keys // PAGE_SIZE).to(tl.int64)
        at = (page * 2 * PAGE_SIZE + keys % PAGE_SIZE) * head_size + kv_head * HEAD_DIM
        k_source = kv_ptr + at[None, :] + dims[:, None]
        v_source = kv_ptr + PAGE_SIZE * head_size + at[:, None] + dims[None, :]
        if IS_MASKED:
            k = tl.load(k_source, mask=is_key[None, :] & (dims < HEAD_DIM)[:, None], other=0.0)
            v = tl.load(v_source, mask=is_key[:, None] & (dims < HEAD_DIM)[None, :], other=0.0)
        elif BLOCK_DIM != HEAD_DIM:
            k = tl.load(k_source, mask=(dims < HEAD_DIM)[:, None], other=0.0)
            v = tl.load(v_source, mask=(dims < HEAD_DIM)[None, :], other=0.0)
        else:
            k = tl.load(k_source)
            v = tl.load(v_source)
        scores = tl.dot(q, k.to(compute), input_precision=PRECISION) * scale_log2
        if IS_MASKED:
            is_seen = (keys[None, :] <= positions[:, None]) & is_key[None, :]
            if HAS_WINDOW:
                is_seen &= keys[None, :] > positions[:, None] - window
            scores = tl.where(is_seen, scores, -1.0e30)
        new_peak = tl.maximum(peak, tl.max(scores, axis=1))
        weights = tl.exp2(scores - new_peak[:, None])
        if IS_MASKED:
            weights = tl.where(is_seen, weights, 0.0)
        shrink = tl.exp2(peak - new_peak)
        total = total * shrink + tl.sum(weights, axis=1)
        acc = acc * shrink[:, None]
        acc = tl.dot(weights.to(compute), v.to(compute), acc, input_precision=PRECISION)
        peak = new_peak
    return acc, total, peak


@triton.jit
def extend_kernel(
    q_ptr,
    kv_ptr,
    page_table_ptr,
    query_starts_ptr,
    kv_lengths_ptr,
    out_ptr,
    num_requests,
    scale_log2,
    window,
    table_stride,
    q_stride,
    q_head_stride,
    PAGE_SIZE: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_GROUP: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Grid: blocks of query tokens (num_tokens // TOKENS + num_requests at most), KV heads."""
    TOKENS: tl.constexpr = BLOCK_ROWS // BLOCK_GROUP
    # Later blocks of a request have more keys: they go first.
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    kv_head = tl.program_id(1)
    request = _find_request(block, query_starts_ptr, num_requests, TOKENS)
    query_start = tl.load(query_starts_ptr + request)
    query_length = tl.load(query_starts_ptr + request + 1) - query_start
    first_query = (block - query_start // TOKENS - request) * TOKENS
    if first_query >= query_length:
        return
    kv_length = tl.load(kv_lengths_ptr + request)
    rows = tl.arange(0, BLOCK_ROWS)
    queries = first_query + rows // BLOCK_GROUP
    heads = rows % BLOCK_GROUP
    dims = tl.arange(0, BLOCK_DIM)
    is_row = (queries < query_length) & (heads < GROUP)
    is_stored = is_row[:, None] & (dims < HEAD_DIM)[None, :]
    tokens = (query_start + queries).to(tl.int64)
    q_heads = kv_head * GROUP + heads
    q = tl.load(
        q_ptr + tokens[:, None] * q_stride + q_heads[:, None] * q_head_stride + dims[None, :],
        mask=is_stored,
        other=0.0,
    )
    first_position = kv_length - query_length + first_query
    positions = kv_length - query_length + queries
    key_end = tl.minimum(first_position + TOKENS, kv_length)
    key_start = 0
    plain_end = (first_position + 1) // BLOCK_KEYS * BLOCK_KEYS  # seen by every row
    if HAS_WINDOW:
        key_start = tl.maximum(first_position - window + 1, 0) // BLOCK_KEYS * BLOCK_KEYS
        plain_end = key_start
    peak = tl.full([BLOCK_ROWS], -1.0e30, tl.float32)
    total = tl.zeros([BLOCK_ROWS], tl.float32)
    acc = tl.zeros([BLOCK_ROWS, BLOCK_DIM], tl.float32)
    table = page_table_ptr + request.to(tl.int64) * table_stride
    acc, total, peak = _attend_keys(
        acc, total, peak, q, positions, kv_ptr, table, kv_head, key_start, plain_end, key_end,
        scale_log2, window, PAGE_SIZE, NUM_KV_HEADS, HEAD_DIM, BLOCK_DIM, BLOCK_KEYS, HAS_WINDOW,
        False, PRECISION,
    )  # fmt: skip
    acc, total, peak = _attend_keys(
        acc, total, peak, q, positions, kv_ptr, table, kv_head, plain_end, key_end, key_end,
        scale_log2, window, PAGE_SIZE, NUM_KV_HEADS, HEAD_DIM, BLOCK_DIM, BLOCK_KEYS, HAS_WINDOW,
        True, PRECISION,
    )  # fmt: skip
    out = acc / tl.where(total > 0, total, 1.0)[:, None]
    num_heads: tl.constexpr = GROUP * NUM_KV_HEADS
    target = out_ptr + (tokens[:, None] * num_heads + q_heads[:, None]) * HEAD_DIM + dims[None, :]
    tl.store(target, out.to(out_ptr.dtype.element_ty), mask=is_stored)
