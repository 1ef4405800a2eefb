"""Attention of chunks of several tokens, and of trees: over pages for what came before, then over
the chunk's own keys and values as they were computed.

Pages are as `caching` says. Peaks of scores are kept in base 2.
The query heads that share a KV head are rows of one tile, so that each key is read once for all of
them.
"""

import triton
import triton.language as tl

from chiplet_triton.kernels.caching import bounded, row_offset, scale_offset


@triton.jit
def find_request(block, query_starts_ptr, num_requests, TOKENS_PER_BLOCK: tl.constexpr):
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
def _add_keys(acc, total, peak, q, k, v, k_scales, is_seen, scale_log2, score_factor,
              HAS_SCALES: tl.constexpr, HAS_SOFTCAP: tl.constexpr, IS_MASKED: tl.constexpr,
              PRECISION: tl.constexpr):  # fmt: skip
    """One block of keys; without a mask every row sees all of them."""
    scores = tl.dot(q, k, input_precision=PRECISION)
    if HAS_SCALES:
        scores *= k_scales[None, :]
    scores = bounded(scores, score_factor, HAS_SOFTCAP)
    if IS_MASKED:
        scores = tl.where(is_seen, scores, -1.0e30)
    new_peak = tl.maximum(peak, tl.max(scores, axis=1) * scale_log2)
    weights = tl.exp2(scores * scale_log2 - new_peak[:, None])
    if IS_MASKED:
        weights = tl.where(is_seen, weights, 0.0)
    shrink = tl.exp2(peak - new_peak)
    total = total * shrink + tl.sum(weights, axis=1)
    acc = acc * shrink[:, None]
    acc = tl.dot(weights.to(v.dtype), v, acc, input_precision=PRECISION)
    return acc, total, new_peak


@triton.jit
def _attend_pages(
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
    scale_log2,
    score_factor,
    window,
    PAGE_SIZE: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    IS_MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Cached keys `first_key` to `last_key`; without a mask their number is one of whole blocks."""
    IS_INT8: tl.constexpr = kv_ptr.dtype.element_ty == tl.int8
    half: tl.constexpr = PAGE_SIZE * NUM_KV_HEADS * (HEAD_DIM + (4 if IS_INT8 else 0))
    dims = tl.arange(0, BLOCK_DIM)
    is_dim = dims < HEAD_DIM
    for first in range(first_key, last_key, BLOCK_KEYS):
        keys = first + tl.arange(0, BLOCK_KEYS)
        is_key = keys < last_key
        if IS_MASKED:
            page = tl.load(table + keys // PAGE_SIZE, mask=is_key, other=0).to(tl.int64)
        else:
            page = tl.load(table + keys // PAGE_SIZE).to(tl.int64)
        place = keys % PAGE_SIZE
        at = row_offset(page, place, kv_head, PAGE_SIZE, NUM_KV_HEADS, HEAD_DIM, IS_INT8)
        k_source = kv_ptr + at[None, :] + dims[:, None]
        v_source = kv_ptr + half + at[:, None] + dims[None, :]
        if IS_MASKED:
            k = tl.load(k_source, mask=is_key[None, :] & is_dim[:, None], other=0.0)
            v = tl.load(v_source, mask=is_key[:, None] & is_dim[None, :], other=0.0)
        elif BLOCK_DIM != HEAD_DIM:
            k = tl.load(k_source, mask=is_dim[:, None], other=0.0)
            v = tl.load(v_source, mask=is_dim[None, :], other=0.0)
        else:
            k = tl.load(k_source)
            v = tl.load(v_source)
        is_seen = is_key[None, :]
        if HAS_WINDOW:
            is_seen &= keys[None, :] > positions[:, None] - window
        k_scales = is_key  # of numbers that are no codes: none
        if IS_INT8:
            scales = kv_ptr.to(tl.pointer_type(tl.float32), bitcast=True)
            scales += scale_offset(page, place, kv_head, PAGE_SIZE, NUM_KV_HEADS, HEAD_DIM)
            k_scales = tl.load(scales, mask=is_key, other=0.0)
            v_scales = tl.load(scales + half // 4, mask=is_key, other=0.0)
            v = v.to(tl.float32) * v_scales[:, None]
        acc, total, peak = _add_keys(
            acc, total, peak, q, k.to(q.dtype), v.to(q.dtype), k_scales, is_seen, scale_log2,
            score_factor, IS_INT8, HAS_SOFTCAP, IS_MASKED, PRECISION,
        )  # fmt: skip
    return acc, total, peak


@triton.jit
def _attend_new(
    acc,
    total,
    peak,
    q,
    queries,
    k_ptr,
    v_ptr,
    k_scales_ptr,
    k_stride,
    v_stride,
    first_key,
    last_key,
    scale_log2,
    score_factor,
    window,
    tree,
    ELEMENT: tl.constexpr,
    NUM_SCALES: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_TREE: tl.constexpr,
    IS_MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The chunk's keys `first_key` to `last_key`, from the tensors that they were computed into.

    Keys that are codes have NUM_SCALES scales a token, one for each head; others have 0.
    `tree`, if there may be one: whether the request is one, the words of each row, the position of
    each row and where those of the new tokens are.
    """
    dims = tl.arange(0, BLOCK_DIM)
    is_dim = dims < HEAD_DIM
    for first in range(first_key, last_key, BLOCK_KEYS):
        keys = first + tl.arange(0, BLOCK_KEYS)
        is_key = keys < last_key
        k_source = k_ptr + keys[None, :] * k_stride + dims[:, None]
        v_source = v_ptr + keys[:, None] * v_stride + dims[None, :]
        if IS_MASKED:
            k = tl.load(k_source, mask=is_key[None, :] & is_dim[:, None], other=0.0)
            v = tl.load(v_source, mask=is_key[:, None] & is_dim[None, :], other=0.0)
        elif BLOCK_DIM != HEAD_DIM:
            k = tl.load(k_source, mask=is_dim[:, None], other=0.0)
            v = tl.load(v_source, mask=is_dim[None, :], other=0.0)
        else:
            k = tl.load(k_source)
            v = tl.load(v_source)
        is_seen = keys[None, :] <= queries[:, None]
        if HAS_TREE:
            is_tree, low, high, positions, positions_ptr = tree
            word = tl.where((keys < 32)[None, :], low[:, None], high[:, None])
            is_bit = ((word >> (keys % 32)[None, :]) & 1) != 0
            is_seen = tl.where(is_tree, is_bit, is_seen)
        is_seen &= is_key[None, :]
        if HAS_WINDOW:
            if HAS_TREE:
                at = tl.load(positions_ptr + keys, mask=is_key, other=0)
                is_seen &= at[None, :] > positions[:, None] - window
            else:
                is_seen &= keys[None, :] > queries[:, None] - window
        # What is cached is what later steps see: attend to it as it is rounded there.
        k, v = k.to(ELEMENT).to(q.dtype), v.to(ELEMENT).to(q.dtype)
        k_scales = is_key
        if NUM_SCALES > 0:
            k_scales = tl.load(k_scales_ptr + keys * NUM_SCALES, mask=is_key, other=0.0)
        acc, total, peak = _add_keys(
            acc, total, peak, q, k, v, k_scales, is_seen, scale_log2, score_factor,
            NUM_SCALES > 0, HAS_SOFTCAP, IS_MASKED, PRECISION,
        )  # fmt: skip
    return acc, total, peak


@triton.jit(
    do_not_specialize=["num_requests", "window", "table_stride"],
    do_not_specialize_on_alignment=[
        "page_table_ptr",
        "query_starts_ptr",
        "kv_lengths_ptr",
        "positions_ptr",
        "tree_bits_ptr",
    ],
)
def extend_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    k_scales_ptr,
    kv_ptr,
    page_table_ptr,
    query_starts_ptr,
    kv_lengths_ptr,
    positions_ptr,
    tree_bits_ptr,
    sinks_ptr,
    out_ptr,
    num_requests,
    scale_log2,
    score_factor,
    window,
    table_stride,
    q_stride,
    q_head_stride,
    k_stride,
    k_head_stride,
    v_stride,
    v_head_stride,
    PAGE_SIZE: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_GROUP: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    HAS_TREE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Grid: blocks of query tokens (num_tokens // TOKENS + num_requests at most), KV heads."""
    TOKENS: tl.constexpr = BLOCK_ROWS // BLOCK_GROUP
    # Keys and values of the chunk come rounded already where the cache has eight bits.
    IS_CODED: tl.constexpr = kv_ptr.dtype.element_ty.primitive_bitwidth == 8
    ELEMENT: tl.constexpr = q_ptr.dtype.element_ty if IS_CODED else kv_ptr.dtype.element_ty
    IS_INT8: tl.constexpr = kv_ptr.dtype.element_ty == tl.int8
    NUM_SCALES: tl.constexpr = NUM_KV_HEADS if IS_INT8 else 0
    # Later blocks of a request have more keys: they go first.
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    kv_head = tl.program_id(1)
    request = find_request(block, query_starts_ptr, num_requests, TOKENS)
    query_start = tl.load(query_starts_ptr + request)
    query_length = tl.load(query_starts_ptr + request + 1) - query_start
    first_query = (block - query_start // TOKENS - request) * TOKENS
    if first_query >= query_length:
        return
    cached = tl.load(kv_lengths_ptr + request) - query_length
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
    peak = tl.full([BLOCK_ROWS], -1.0e30, tl.float32)
    total = tl.zeros([BLOCK_ROWS], tl.float32)
    if HAS_SINKS:
        peak = tl.load(sinks_ptr + q_heads, mask=is_row, other=0.0) * 1.4426950408889634
        total += 1.0
    acc = tl.zeros([BLOCK_ROWS, BLOCK_DIM], tl.float32)
    table = page_table_ptr + request.to(tl.int64) * table_stride
    positions = cached + queries
    page_start = 0
    page_plain = cached // BLOCK_KEYS * BLOCK_KEYS  # seen by every row, in whole blocks
    new_end = tl.minimum(first_query + TOKENS, query_length)
    new_start = 0
    new_plain = (first_query + 1) // BLOCK_KEYS * BLOCK_KEYS
    lowest = first_query  # what the block's first position is beyond those of cached tokens
    tree = 0
    if HAS_TREE:
        is_tree = (tl.load(tree_bits_ptr + 2 * query_start) != 0) | (
            tl.load(tree_bits_ptr + 2 * query_start + 1) != 0
        )
        is_query = queries < query_length
        low = tl.load(tree_bits_ptr + 2 * tokens, mask=is_query, other=0)
        high = tl.load(tree_bits_ptr + 2 * tokens + 1, mask=is_query, other=0)
        positions = tl.load(positions_ptr + tokens, mask=is_query, other=0)
        tree = (is_tree, low, high, positions, positions_ptr + query_start)
        lowest = tl.where(is_tree, 0, first_query)
        new_plain = tl.where(is_tree, 0, new_plain)
    if HAS_WINDOW:
        page_start = tl.maximum(cached + lowest - window + 1, 0) // BLOCK_KEYS * BLOCK_KEYS
        page_plain = page_start
        new_start = tl.maximum(lowest - window + 1, 0) // BLOCK_KEYS * BLOCK_KEYS
        new_plain = new_start
    else:
        acc, total, peak = _attend_pages(
            acc, total, peak, q, positions, kv_ptr, table, kv_head, page_start, page_plain,
            scale_log2, score_factor, window, PAGE_SIZE, NUM_KV_HEADS, HEAD_DIM, BLOCK_DIM,
            BLOCK_KEYS, HAS_WINDOW, HAS_SOFTCAP, False, PRECISION,
        )  # fmt: skip
    acc, total, peak = _attend_pages(
        acc, total, peak, q, positions, kv_ptr, table, kv_head, page_plain, cached,
        scale_log2, score_factor, window, PAGE_SIZE, NUM_KV_HEADS, HEAD_DIM, BLOCK_DIM, BLOCK_KEYS,
        HAS_WINDOW, HAS_SOFTCAP, True, PRECISION,
    )  # fmt: skip
    first_token = query_start.to(tl.int64)
    k_new = k_ptr + first_token * k_stride + kv_head * k_head_stride
    v_new = v_ptr + first_token * v_stride + kv_head * v_head_stride
    new_scales = k_scales_ptr + first_token * NUM_KV_HEADS + kv_head
    if not HAS_WINDOW:
        acc, total, peak = _attend_new(
            acc, total, peak, q, queries, k_new, v_new, new_scales, k_stride, v_stride,
            new_start, new_plain, scale_log2, score_factor, window, tree, ELEMENT, NUM_SCALES,
            HEAD_DIM, BLOCK_DIM, BLOCK_KEYS, HAS_WINDOW, HAS_SOFTCAP, HAS_TREE, False, PRECISION,
        )  # fmt: skip
    acc, total, peak = _attend_new(
        acc, total, peak, q, queries, k_new, v_new, new_scales, k_stride, v_stride,
        new_plain, new_end, scale_log2, score_factor, window, tree, ELEMENT, NUM_SCALES,
        HEAD_DIM, BLOCK_DIM, BLOCK_KEYS, HAS_WINDOW, HAS_SOFTCAP, HAS_TREE, True, PRECISION,
    )  # fmt: skip
    out = acc / tl.where(total > 0, total, 1.0)[:, None]
    num_heads: tl.constexpr = GROUP * NUM_KV_HEADS
    target = out_ptr + (tokens[:, None] * num_heads + q_heads[:, None]) * HEAD_DIM + dims[None, :]
    tl.store(target, out.to(out_ptr.dtype.element_ty), mask=is_stored)
