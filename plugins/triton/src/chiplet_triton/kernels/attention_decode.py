"""Attention of one new token per request over its pages, keys and values split among programs.

Pages are as `caching` says. Scores are kept in base 2.
"""

import triton
import triton.language as tl

from chiplet_triton.kernels.caching import (
    bounded,
    half_of_pairs,
    int8_codes,
    row_offset,
    scale_offset,
    to_cache,
)
from chiplet_triton.kernels.overlap import let_next_start, wait_for_inputs


@triton.jit
def add_codes(
    acc, total, peak, q_source, is_head, kv_ptr, table, kv_head, first_key, last_key, scale_log2,
    score_factor, PAGE_SIZE: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr, BLOCK_KEYS: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
    IS_PACKED: tl.constexpr,
):  # fmt: skip
    """Cached keys in codes, as numbers of half precision, which hold every code exactly.

    Matrix units take 16 bits from shared memory as they lie; bytes of values would be read one by
    one. So codes are read in pairs, and even and odd dimensions have products of their own.
    """
    IS_INT8: tl.constexpr = kv_ptr.dtype.element_ty == tl.int8
    BLOCK_GROUP: tl.constexpr = acc.shape[0]
    half: tl.constexpr = PAGE_SIZE * NUM_KV_HEADS * (HEAD_DIM + (4 if IS_INT8 else 0))
    words_ptr = kv_ptr.to(tl.pointer_type(tl.uint16), bitcast=True)
    if IS_INT8:
        scales_ptr = kv_ptr.to(tl.pointer_type(tl.float32), bitcast=True)
    dims = tl.arange(0, BLOCK_DIM // 2)
    is_dim = dims < HEAD_DIM // 2
    is_loaded = is_head[:, None] & is_dim[None, :]
    q_even = tl.load(q_source + 2 * dims[None, :], mask=is_loaded, other=0.0).to(tl.float32)
    q_odd = tl.load(q_source + 2 * dims[None, :] + 1, mask=is_loaded, other=0.0).to(tl.float32)
    # The largest number of a row of queries becomes one below 2^8: none is too large or lost.
    largest = tl.max(tl.maximum(tl.abs(q_even), tl.abs(q_odd)), axis=1)
    exponent = (largest.to(tl.int32, bitcast=True) >> 23) - 134
    exponent = tl.minimum(tl.maximum(exponent, -100), 100)
    down = ((127 - exponent) << 23).to(tl.float32, bitcast=True)[:, None]
    up = ((127 + exponent) << 23).to(tl.float32, bitcast=True)[:, None]
    q_even, q_odd = (q_even * down).to(tl.float16), (q_odd * down).to(tl.float16)
    even, odd = tl.split(tl.reshape(acc, [BLOCK_GROUP, BLOCK_DIM // 2, 2]))
    inner = tl.arange(0, BLOCK_KEYS)
    # Pages are read one block ahead: loads of keys that hang on loads would leave one buffer.
    at_page = first_key + inner
    page_id = tl.load(table + at_page // PAGE_SIZE, mask=at_page < last_key, other=0)
    for first in range(first_key, last_key, BLOCK_KEYS):
        keys = first + inner
        is_seen = keys < last_key
        page = page_id.to(tl.int64)
        at_page = keys + BLOCK_KEYS
        page_id = tl.load(table + at_page // PAGE_SIZE, mask=at_page < last_key, other=0)
        place = keys % PAGE_SIZE
        at = row_offset(page, place, kv_head, PAGE_SIZE, NUM_KV_HEADS, HEAD_DIM, IS_INT8) // 2
        source = words_ptr + at[:, None] + dims[None, :]
        is_word = is_seen[:, None] & is_dim[None, :]
        k_words = tl.load(source, mask=is_word, other=0)
        v_words = tl.load(source + half // 2, mask=is_word, other=0)
        k_even = half_of_pairs(k_words, False, IS_INT8, IS_PACKED)
        k_odd = half_of_pairs(k_words, True, IS_INT8, IS_PACKED)
        scores = tl.dot(q_odd, tl.trans(k_odd), tl.dot(q_even, tl.trans(k_even)))
        scores *= up
        factor = 1.0
        if IS_INT8:
            at = scale_offset(page, place, kv_head, PAGE_SIZE, NUM_KV_HEADS, HEAD_DIM)
            scores *= tl.load(scales_ptr + at, mask=is_seen, other=0.0)[None, :]
            v_scales = tl.load(scales_ptr + at + half // 4, mask=is_seen, other=0.0)
            # A power of two, at most twice the largest scale.
            top = tl.maximum(tl.max(v_scales, axis=0), 1.0e-30).to(tl.int32, bitcast=True) >> 23
            factor = ((top + 1) << 23).to(tl.float32, bitcast=True)
            v_scales *= ((253 - top) << 23).to(tl.float32, bitcast=True)
        scores = bounded(scores, score_factor, HAS_SOFTCAP)
        scores = tl.where(is_seen[None, :], scores, -1.0e30)
        new_peak = tl.maximum(peak, tl.max(scores, axis=1) * scale_log2)
        shrink = tl.exp2(peak - new_peak)
        weights = tl.exp2(scores * scale_log2 - new_peak[:, None])
        weights = tl.where(is_seen[None, :], weights, 0.0)
        total = total * shrink + tl.sum(weights, axis=1)
        if IS_INT8:
            # Scales of values are parts of the largest one: products with weights fit 16 bits.
            weights *= v_scales[None, :]
        weights = weights.to(tl.float16)
        v_even = half_of_pairs(v_words, False, IS_INT8, IS_PACKED)
        v_odd = half_of_pairs(v_words, True, IS_INT8, IS_PACKED)
        if IS_INT8:
            even = even * shrink[:, None] + tl.dot(weights, v_even) * factor
            odd = odd * shrink[:, None] + tl.dot(weights, v_odd) * factor
        else:
            even = tl.dot(weights, v_even, even * shrink[:, None])
            odd = tl.dot(weights, v_odd, odd * shrink[:, None])
        peak = new_peak
    return tl.reshape(tl.join(even, odd), [BLOCK_GROUP, BLOCK_DIM]), total, peak


@triton.jit
def add_keys(
    acc, total, peak, q, kv_ptr, table, kv_head, first_key, last_key, scale_log2, score_factor,
    PAGE_SIZE: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_KEYS: tl.constexpr, HAS_SOFTCAP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Cached keys `first_key` to `last_key` of a page table, seen by all rows of queries."""
    IS_INT8: tl.constexpr = kv_ptr.dtype.element_ty == tl.int8
    BLOCK_DIM: tl.constexpr = acc.shape[1]
    v_offset: tl.constexpr = PAGE_SIZE * NUM_KV_HEADS * (HEAD_DIM + (4 if IS_INT8 else 0))
    compute = q.dtype
    dims = tl.arange(0, BLOCK_DIM)
    is_dim = dims < HEAD_DIM
    if IS_INT8:
        scales_ptr = kv_ptr.to(tl.pointer_type(tl.float32), bitcast=True)
    for first in range(first_key, last_key, BLOCK_KEYS):
        keys = first + tl.arange(0, BLOCK_KEYS)
        is_seen = keys < last_key
        page = tl.load(table + keys // PAGE_SIZE, mask=is_seen, other=0).to(tl.int64)
        place = keys % PAGE_SIZE
        at = row_offset(page, place, kv_head, PAGE_SIZE, NUM_KV_HEADS, HEAD_DIM, IS_INT8)
        source = kv_ptr + at[:, None] + dims[None, :]
        is_loaded = is_seen[:, None] & is_dim[None, :]
        k = tl.load(source, mask=is_loaded, other=0.0).to(compute)
        v = tl.load(source + v_offset, mask=is_loaded, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        if IS_INT8:
            at = scale_offset(page, place, kv_head, PAGE_SIZE, NUM_KV_HEADS, HEAD_DIM)
            scores *= tl.load(scales_ptr + at, mask=is_seen, other=0.0)[None, :]
            v_scales = tl.load(scales_ptr + at + v_offset // 4, mask=is_seen, other=0.0)
            v = v.to(tl.float32) * v_scales[:, None]
        v = v.to(compute)
        scores = bounded(scores, score_factor, HAS_SOFTCAP)
        scores = tl.where(is_seen[None, :], scores, -1.0e30)
        new_peak = tl.maximum(peak, tl.max(scores, axis=1) * scale_log2)
        shrink = tl.exp2(peak - new_peak)
        weights = tl.exp2(scores * scale_log2 - new_peak[:, None])
        weights = tl.where(is_seen[None, :], weights, 0.0)
        total = total * shrink + tl.sum(weights, axis=1)
        acc = acc * shrink[:, None]
        acc = tl.dot(weights.to(compute), v, acc, input_precision=PRECISION)
        peak = new_peak
    return acc, total, peak


@triton.jit(do_not_specialize=["num_splits", "window", "table_stride"])
def decode_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    kv_ptr,
    kv_rows_ptr,
    page_table_ptr,
    kv_lengths_ptr,
    sinks_ptr,
    shared_keys_ptr,
    counts_ptr,
    prefix_ptr,
    prefix_lse_ptr,
    out_ptr,
    partial_ptr,
    partial_lse_ptr,
    scale_log2,
    score_factor,
    num_splits,
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
    BLOCK_DIM: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    MOST_PARTS: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr,
    IN_PAIRS: tl.constexpr,
    IS_PACKED: tl.constexpr,
):
    """Grid: requests, KV heads, splits.

    The first split also takes the new token's key and value: it attends to them from registers
    and writes them to the request's page, so that no program reads what another one writes.

    Where MOST_PARTS is not 0, the first `shared_keys` of a request were seen by `prefix_kernel`,
    and what became of them comes in parts; there are no splits then.
    """
    request = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    heads = tl.arange(0, BLOCK_GROUP)
    dims = tl.arange(0, BLOCK_DIM)
    is_dim = dims < HEAD_DIM
    is_head = heads < GROUP
    element: tl.constexpr = kv_ptr.dtype.element_ty
    IS_INT8: tl.constexpr = element == tl.int8
    v_offset: tl.constexpr = PAGE_SIZE * NUM_KV_HEADS * (HEAD_DIM + (4 if IS_INT8 else 0))
    if IS_INT8:
        scales_ptr = kv_ptr.to(tl.pointer_type(tl.float32), bitcast=True)

    let_next_start(OVERLAP)
    wait_for_inputs(OVERLAP)
    length = tl.load(kv_lengths_ptr + request)
    end = tl.maximum(length - 1, 0)  # keys before the new one
    start = 0
    if HAS_WINDOW:
        start = tl.maximum(length - window, 0)
    if MOST_PARTS > 0:
        start = tl.load(shared_keys_ptr + request)
    blocks_per_split = tl.cdiv(tl.cdiv(end - start, BLOCK_KEYS), num_splits)
    split_start = start + split * blocks_per_split * BLOCK_KEYS
    split_end = tl.minimum(split_start + blocks_per_split * BLOCK_KEYS, end)

    q_heads = kv_head * GROUP + heads
    q = tl.load(
        q_ptr + request * q_stride + q_heads[:, None] * q_head_stride + dims[None, :],
        mask=is_head[:, None] & is_dim[None, :],
        other=0.0,
    )
    peak = tl.full([BLOCK_GROUP], -1.0e30, tl.float32)
    total = tl.zeros([BLOCK_GROUP], tl.float32)
    acc = tl.zeros([BLOCK_GROUP, BLOCK_DIM], tl.float32)
    if split == 0:
        k_new = tl.load(
            k_ptr + request * k_stride + kv_head * k_head_stride + dims, mask=is_dim, other=0.0
        )
        v_new = tl.load(
            v_ptr + request * v_stride + kv_head * v_head_stride + dims, mask=is_dim, other=0.0
        )
        row = tl.load(kv_rows_ptr + request).to(tl.int64)
        page = row // PAGE_SIZE
        place = row - page * PAGE_SIZE
        target = kv_ptr + dims
        target += row_offset(page, place, kv_head, PAGE_SIZE, NUM_KV_HEADS, HEAD_DIM, IS_INT8)
        # What is cached is what later steps see: attend to it as it was rounded.
        if IS_INT8:
            k_codes, k_scale = int8_codes(k_new.to(tl.float32)[None, :])
            v_codes, v_scale = int8_codes(v_new.to(tl.float32)[None, :])
            tl.store(target[None, :], k_codes, mask=is_dim[None, :])
            tl.store(target[None, :] + v_offset, v_codes, mask=is_dim[None, :])
            at = scale_offset(page, place, kv_head, PAGE_SIZE, NUM_KV_HEADS, HEAD_DIM)
            at += tl.arange(0, 1)
            tl.store(scales_ptr + at, k_scale)
            tl.store(scales_ptr + at + v_offset // 4, v_scale)
            k_seen = k_codes.to(tl.float32) * k_scale[:, None]
            v_seen = v_codes.to(tl.float32) * v_scale[:, None]
        else:
            k_cached, v_cached = to_cache(k_new, element), to_cache(v_new, element)
            tl.store(target, k_cached, mask=is_dim)
            tl.store(target + v_offset, v_cached, mask=is_dim)
            k_seen = k_cached.to(tl.float32)[None, :]
            v_seen = v_cached.to(tl.float32)[None, :]
        score = tl.sum(q.to(tl.float32) * k_seen, axis=1)
        peak = bounded(score, score_factor, HAS_SOFTCAP) * scale_log2
        if HAS_SINKS:
            sink = tl.load(sinks_ptr + q_heads, mask=is_head, other=0.0) * 1.4426950408889634
            new = peak
            peak = tl.maximum(new, sink)
            share = tl.exp2(new - peak)
            total += share + tl.exp2(sink - peak)
            acc += v_seen * share[:, None]
        else:
            total += 1.0
            acc += v_seen

    num_heads: tl.constexpr = GROUP * NUM_KV_HEADS
    is_stored = is_head[:, None] & is_dim[None, :]
    if MOST_PARTS > 0:
        num_parts = tl.where(start > 0, tl.load(counts_ptr + 1), 0)
        for part in range(num_parts):
            at_row = (request * num_heads + q_heads) * MOST_PARTS + part
            lse = tl.load(prefix_lse_ptr + at_row, mask=is_head, other=-1.0e30)
            part_out = tl.load(
                prefix_ptr + at_row[:, None] * HEAD_DIM + dims[None, :], mask=is_stored, other=0.0
            )
            new_peak = tl.maximum(peak, lse)
            shrink = tl.exp2(peak - new_peak)
            share = tl.exp2(lse - new_peak)
            total = total * shrink + share
            acc = acc * shrink[:, None] + part_out * share[:, None]
            peak = new_peak

    table = page_table_ptr + request * table_stride
    if IN_PAIRS:
        acc, total, peak = add_codes(
            acc, total, peak, q_ptr + request * q_stride + q_heads[:, None] * q_head_stride,
            is_head, kv_ptr, table, kv_head, split_start, split_end, scale_log2, score_factor,
            PAGE_SIZE, NUM_KV_HEADS, HEAD_DIM, BLOCK_DIM, BLOCK_KEYS, HAS_SOFTCAP, IS_PACKED,
        )  # fmt: skip
    else:
        acc, total, peak = add_keys(
            acc, total, peak, q, kv_ptr, table, kv_head, split_start, split_end, scale_log2,
            score_factor, PAGE_SIZE, NUM_KV_HEADS, HEAD_DIM, BLOCK_KEYS, HAS_SOFTCAP, PRECISION,
        )  # fmt: skip

    out = acc / tl.where(total > 0, total, 1.0)[:, None]
    if IS_SPLIT:
        at_row = (request * num_heads + q_heads) * num_splits + split
        tl.store(partial_ptr + at_row[:, None] * HEAD_DIM + dims[None, :], out, mask=is_stored)
        lse = tl.where(total > 0, peak + tl.log2(total), -1.0e30)
        tl.store(partial_lse_ptr + at_row, lse, mask=is_head)
    else:
        at_row = request * num_heads + q_heads
        tl.store(
            out_ptr + at_row[:, None] * HEAD_DIM + dims[None, :],
            out.to(out_ptr.dtype.element_ty),
            mask=is_stored,
        )


@triton.jit(do_not_specialize=["num_splits"])
def merge_splits_kernel(
    partial_ptr,
    partial_lse_ptr,
    out_ptr,
    num_splits,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Weighs the splits of one head of one request by their share of the softmax.

    Grid: requests * heads.
    """
    row = tl.program_id(0).to(tl.int64)
    splits = tl.arange(0, BLOCK_SPLITS)
    dims = tl.arange(0, BLOCK_DIM)
    is_split = splits < num_splits
    is_dim = dims < HEAD_DIM
    let_next_start(OVERLAP)
    wait_for_inputs(OVERLAP)
    lse = tl.load(partial_lse_ptr + row * num_splits + splits, mask=is_split, other=-1.0e30)
    parts = tl.load(
        partial_ptr + (row * num_splits + splits[:, None]) * HEAD_DIM + dims[None, :],
        mask=is_split[:, None] & is_dim[None, :],
        other=0.0,
    )
    weights = tl.where(is_split, tl.exp2(lse - tl.max(lse, axis=0)), 0.0)
    out = tl.sum(parts * weights[:, None], axis=0) / tl.sum(weights, axis=0)
    tl.store(out_ptr + row * HEAD_DIM + dims, out.to(out_ptr.dtype.element_ty), mask=is_dim)
