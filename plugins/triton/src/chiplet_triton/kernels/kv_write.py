"""Writing new keys and values into their pages."""

import triton
import triton.language as tl

from chiplet_triton.kernels.caching import (
    int8_codes,
    row_offset,
    scale_offset,
    to_cache,
)


@triton.jit
def kv_write_kernel(
    k_ptr,
    v_ptr,
    kv_ptr,
    kv_rows_ptr,
    k_seen_ptr,
    v_seen_ptr,
    k_scales_ptr,
    k_stride,
    k_head_stride,
    v_stride,
    v_head_stride,
    PAGE_SIZE: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    WRITES_SEEN: tl.constexpr,
):
    """One program a token; pages as `caching` says.

    `seen` are keys and values as the cache has rounded them, token by token; of keys in int8 the
    codes, whose scales `[num_tokens, NUM_KV_HEADS]` stand beside them: products of both would be
    rounded once more.
    """
    token = tl.program_id(0).to(tl.int64)
    row = tl.load(kv_rows_ptr + token).to(tl.int64)
    heads = tl.arange(0, BLOCK_HEADS)[:, None]
    dims = tl.arange(0, BLOCK_DIM)[None, :]
    is_inside = (heads < NUM_KV_HEADS) & (dims < HEAD_DIM)
    k = tl.load(k_ptr + token * k_stride + heads * k_head_stride + dims, mask=is_inside)
    v = tl.load(v_ptr + token * v_stride + heads * v_head_stride + dims, mask=is_inside)
    page = row // PAGE_SIZE
    place = row - page * PAGE_SIZE
    element: tl.constexpr = kv_ptr.dtype.element_ty
    IS_INT8: tl.constexpr = element == tl.int8
    half: tl.constexpr = PAGE_SIZE * NUM_KV_HEADS * (HEAD_DIM + (4 if IS_INT8 else 0))
    target = row_offset(page, place, heads, PAGE_SIZE, NUM_KV_HEADS, HEAD_DIM, IS_INT8) + dims
    target += kv_ptr
    if IS_INT8:
        k_cached, k_scales = int8_codes(tl.where(is_inside, k, 0.0).to(tl.float32))
        v_cached, v_scales = int8_codes(tl.where(is_inside, v, 0.0).to(tl.float32))
        heads_of_scales = tl.arange(0, BLOCK_HEADS)
        is_head = heads_of_scales < NUM_KV_HEADS
        scales = kv_ptr.to(tl.pointer_type(tl.float32), bitcast=True)
        scales += scale_offset(page, place, heads_of_scales, PAGE_SIZE, NUM_KV_HEADS, HEAD_DIM)
        tl.store(scales, k_scales, mask=is_head)
        tl.store(scales + half // 4, v_scales, mask=is_head)
        if WRITES_SEEN:
            at_scale = token * NUM_KV_HEADS + heads_of_scales
            tl.store(k_scales_ptr + at_scale, k_scales, mask=is_head)
        k_seen = k_cached
        v_seen = v_cached.to(tl.float32) * v_scales[:, None]
    else:
        k_cached, v_cached = to_cache(k, element), to_cache(v, element)
        k_seen, v_seen = k_cached, v_cached
    tl.store(target, k_cached, mask=is_inside)
    tl.store(target + half, v_cached, mask=is_inside)
    if WRITES_SEEN:
        at = token * (NUM_KV_HEADS * HEAD_DIM) + heads * HEAD_DIM + dims
        tl.store(k_seen_ptr + at, k_seen.to(k.dtype), mask=is_inside)
        tl.store(v_seen_ptr + at, v_seen.to(v.dtype), mask=is_inside)
