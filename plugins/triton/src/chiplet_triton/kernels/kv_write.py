"""Writing new keys and values into their pages."""

import triton
import triton.language as tl

from chiplet_triton.kernels.caching import to_cache


@triton.jit
def kv_write_kernel(
    k_ptr,
    v_ptr,
    kv_ptr,
    kv_rows_ptr,
    k_seen_ptr,
    v_seen_ptr,
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
    """One program a token; pages as `[num_pages, 2, PAGE_SIZE, NUM_KV_HEADS, HEAD_DIM]`.

    `seen` are keys and values as the cache has rounded them, token by token.
    """
    token = tl.program_id(0).to(tl.int64)
    row = tl.load(kv_rows_ptr + token).to(tl.int64)
    heads = tl.arange(0, BLOCK_HEADS)[:, None]
    dims = tl.arange(0, BLOCK_DIM)[None, :]
    is_inside = (heads < NUM_KV_HEADS) & (dims < HEAD_DIM)
    k = tl.load(k_ptr + token * k_stride + heads * k_head_stride + dims, mask=is_inside)
    v = tl.load(v_ptr + token * v_stride + heads * v_head_stride + dims, mask=is_inside)
    page = row // PAGE_SIZE
    first = (page * 2 * PAGE_SIZE + row - page * PAGE_SIZE) * (NUM_KV_HEADS * HEAD_DIM)
    target = kv_ptr + first + heads * HEAD_DIM + dims
    element = kv_ptr.dtype.element_ty
    k_cached, v_cached = to_cache(k, element), to_cache(v, element)
    tl.store(target, k_cached, mask=is_inside)
    tl.store(target + PAGE_SIZE * NUM_KV_HEADS * HEAD_DIM, v_cached, mask=is_inside)
    if WRITES_SEEN:
        at = token * (NUM_KV_HEADS * HEAD_DIM) + heads * HEAD_DIM + dims
        tl.store(k_seen_ptr + at, k_cached.to(k.dtype), mask=is_inside)
        tl.store(v_seen_ptr + at, v_cached.to(v.dtype), mask=is_inside)
