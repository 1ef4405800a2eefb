"""The tokens to which each row gives most weight, over all keys that a request has cached.

Pages are as `caching` says. A score and its key are one whole number of 64 bits, by whose order the
largest are found: the upper half rises with the score.
"""

import triton
import triton.language as tl

from chiplet_triton.kernels.attention_extend import find_request
from chiplet_triton.kernels.caching import bounded, row_offset, scale_offset

_NONE = tl.constexpr(-(2**63))


@triton.jit
def _rising(x):
    """Bits of float32 as whole numbers in the order of the numbers; the same way back."""
    return x ^ ((x >> 31) & 0x7FFFFFFF)


@triton.jit
def _pairs(scores, keys, is_seen):
    """Scores and keys as numbers to be ordered."""
    upper = _rising(scores.to(tl.int32, bitcast=True)).to(tl.int64) << 32
    return tl.where(is_seen, upper | keys.to(tl.int64)[None, :], _NONE)


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
def capture_kernel(
    q_ptr,
    kv_ptr,
    page_table_ptr,
    query_starts_ptr,
    kv_lengths_ptr,
    positions_ptr,
    tree_bits_ptr,
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
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_GROUP: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    COUNT: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_TREE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Grid: blocks of query tokens (num_tokens // TOKENS + num_requests at most), KV heads, splits.

    Writes, of each row and split, its COUNT largest pairs, and the logarithm of what the softmax
    sums up to there.
    """
    TOKENS: tl.constexpr = BLOCK_ROWS // BLOCK_GROUP
    IS_INT8: tl.constexpr = kv_ptr.dtype.element_ty == tl.int8
    block = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
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
    is_dim = dims < HEAD_DIM
    is_row = (queries < query_length) & (heads < GROUP)
    tokens = (query_start + queries).to(tl.int64)
    q_heads = kv_head * GROUP + heads
    q = tl.load(
        q_ptr + tokens[:, None] * q_stride + q_heads[:, None] * q_head_stride + dims[None, :],
        mask=is_row[:, None] & is_dim[None, :],
        other=0.0,
    )
    positions = tl.load(positions_ptr + tokens, mask=is_row, other=0)
    start = 0
    if HAS_WINDOW:
        # No token of a tree stands before the first new place.
        lowest = cached if HAS_TREE else cached + first_query
        start = tl.maximum(lowest - window + 1, 0) // BLOCK_KEYS * BLOCK_KEYS
    end = cached + tl.minimum(first_query + TOKENS, query_length)
    blocks_per_split = tl.cdiv(tl.cdiv(end - start, BLOCK_KEYS), num_splits)
    split_start = start + split * blocks_per_split * BLOCK_KEYS
    split_end = tl.minimum(split_start + blocks_per_split * BLOCK_KEYS, end)
    if HAS_TREE:
        low = tl.load(tree_bits_ptr + 2 * tokens, mask=is_row, other=0)
        high = tl.load(tree_bits_ptr + 2 * tokens + 1, mask=is_row, other=0)
        is_tree = (low != 0) | (high != 0)
    peak = tl.full([BLOCK_ROWS], -1.0e30, tl.float32)
    total = tl.zeros([BLOCK_ROWS], tl.float32)
    best = tl.full([BLOCK_ROWS, COUNT], _NONE, tl.int64)
    table = page_table_ptr + request.to(tl.int64) * table_stride
    for first in range(split_start, split_end, BLOCK_KEYS):
        keys = first + tl.arange(0, BLOCK_KEYS)
        is_key = keys < split_end
        new = keys - cached
        page = tl.load(table + keys // PAGE_SIZE, mask=is_key, other=0).to(tl.int64)
        place = keys % PAGE_SIZE
        at = row_offset(page, place, kv_head, PAGE_SIZE, NUM_KV_HEADS, HEAD_DIM, IS_INT8)
        source = kv_ptr + at[None, :] + dims[:, None]
        k = tl.load(source, mask=is_key[None, :] & is_dim[:, None], other=0.0).to(q.dtype)
        scores = tl.dot(q, k, input_precision=PRECISION)
        if IS_INT8:
            scales = kv_ptr.to(tl.pointer_type(tl.float32), bitcast=True)
            scales += scale_offset(page, place, kv_head, PAGE_SIZE, NUM_KV_HEADS, HEAD_DIM)
            scores *= tl.load(scales, mask=is_key, other=0.0)[None, :]
        scores = bounded(scores, score_factor, HAS_SOFTCAP)
        is_seen = new[None, :] <= queries[:, None]
        if HAS_TREE:
            word = tl.where((new < 32)[None, :], low[:, None], high[:, None])
            is_bit = ((word >> (new & 31)[None, :]) & 1) != 0
            is_seen = tl.where(is_tree[:, None], is_bit | (new < 0)[None, :], is_seen)
        is_seen &= is_key[None, :] & is_row[:, None]
        if HAS_WINDOW:
            stands_at = keys
            if HAS_TREE:
                is_new = is_key & (new >= 0)
                stands_at = tl.load(positions_ptr + query_start + new, mask=is_new, other=0)
                stands_at = tl.where(is_new, stands_at, keys)
            is_seen &= stands_at[None, :] > positions[:, None] - window
        scores = tl.where(is_seen, scores, -1.0e30)
        new_peak = tl.maximum(peak, tl.max(scores, axis=1) * scale_log2)
        weights = tl.where(is_seen, tl.exp2(scores * scale_log2 - new_peak[:, None]), 0.0)
        total = total * tl.exp2(peak - new_peak) + tl.sum(weights, axis=1)
        peak = new_peak
        pairs = _pairs(scores, keys, is_seen)
        is_larger = tl.max(pairs, axis=1) > tl.min(best, axis=1)
        if tl.max(is_larger.to(tl.int32), axis=0) > 0:
            both = tl.join(best, tl.topk(pairs, COUNT))
            best = tl.topk(tl.reshape(both, [BLOCK_ROWS, 2 * COUNT]), COUNT)
    num_heads: tl.constexpr = GROUP * NUM_KV_HEADS
    at_row = (tokens * num_heads + q_heads) * num_splits + split
    target = partial_ptr + at_row[:, None] * COUNT + tl.arange(0, COUNT)[None, :]
    tl.store(target, best, mask=is_row[:, None])
    lse = tl.where(total > 0, peak + tl.log2(total), -1.0e30)
    tl.store(partial_lse_ptr + at_row, lse, mask=is_row)


@triton.jit(do_not_specialize=["num_splits", "num_wanted"])
def merge_captures_kernel(
    partial_ptr,
    partial_lse_ptr,
    sinks_ptr,
    tokens_ptr,
    weights_ptr,
    scale_log2,
    num_splits,
    num_wanted,
    NUM_HEADS: tl.constexpr,
    COUNT: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
    HAS_SINKS: tl.constexpr,
):
    """The largest pairs of all splits of a row, as keys and weights. Grid: tokens * heads."""
    row = tl.program_id(0).to(tl.int64)
    splits = tl.arange(0, BLOCK_SPLITS)
    lse = tl.load(
        partial_lse_ptr + row * num_splits + splits, mask=splits < num_splits, other=-1.0e30
    )
    peak = tl.max(lse, axis=0)
    if HAS_SINKS:
        sink = tl.load(sinks_ptr + row % NUM_HEADS) * 1.4426950408889634
        peak = tl.maximum(peak, sink)
    total = tl.sum(tl.exp2(lse - peak), axis=0)
    if HAS_SINKS:
        total += tl.exp2(sink - peak)
    each = tl.arange(0, BLOCK_SPLITS * COUNT)
    pairs = tl.load(
        partial_ptr + row * num_splits * COUNT + each,
        mask=each < num_splits * COUNT,
        other=_NONE,
    )
    best = tl.topk(pairs, COUNT)
    is_pair = best != _NONE
    scores = _rising((best >> 32).to(tl.int32)).to(tl.float32, bitcast=True)
    weights = tl.exp2(scores * scale_log2 - peak) / total
    place = tl.arange(0, COUNT)
    target = row * num_wanted + place
    tl.store(tokens_ptr + target, tl.where(is_pair, best.to(tl.int32), -1), mask=place < num_wanted)
    tl.store(weights_ptr + target, tl.where(is_pair, weights, 0.0), mask=place < num_wanted)
