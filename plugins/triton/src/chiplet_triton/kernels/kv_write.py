"""Writing new keys and values into their pages."""

import triton
import triton.language as tl


@triton.jit
def kv_write_kernel(
    k_ptr,
    v_ptr,
    kv_ptr,
    kv_rows_ptr,
    k_stride,
    k_head_stride,
    v_stride,
    v_head_stride,
    PAGE_SIZE: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    """One program a token; pages as `[num_pages, 2, PAGE_SIZE, NUM_KV_HEADS, HEAD_DIM]`."""
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
    tl.store(target, k.to(element), mask=is_inside)
    tl.store(target + PAGE_SIZE * NUM_KV_HEADS * HEAD_DIM, v.to(element), mask=is_inside)
