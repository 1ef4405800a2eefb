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
):
    """Grid: tokens, then keys and values. HEAD_DIM is a power of two.

    Pages are `[num_pages, 2, PAGE_SIZE, NUM_KV_HEADS, HEAD_DIM]`.
    """
    token = tl.program_id(0).to(tl.int64)
    row = tl.load(kv_rows_ptr + token).to(tl.int64)
    heads = tl.arange(0, BLOCK_HEADS)[:, None]
    dims = tl.arange(0, HEAD_DIM)[None, :]
    is_head = heads < NUM_KV_HEADS
    page = row // PAGE_SIZE
    first = (page * 2 * PAGE_SIZE + row - page * PAGE_SIZE) * (NUM_KV_HEADS * HEAD_DIM)
    target = kv_ptr + first + heads * HEAD_DIM + dims
    if tl.program_id(1) == 0:
        k = tl.load(k_ptr + token * k_stride + heads * k_head_stride + dims, mask=is_head)
        tl.store(target, k, mask=is_head)
    else:
        v = tl.load(v_ptr + token * v_stride + heads * v_head_stride + dims, mask=is_head)
        tl.store(target + PAGE_SIZE * NUM_KV_HEADS * HEAD_DIM, v, mask=is_head)


def write_kv(k, v, kv, kv_rows):
    """Write each token's keys and values where its row says.

    Shapes: k, v `[num_tokens, num_kv_heads, head_dim]`, last dimension contiguous; kv as the
    kernel says; kv_rows `[num_tokens] int32`. Mutates: `kv`.
    """
    num_tokens, num_kv_heads, head_dim = k.shape
    kv_write_kernel[(num_tokens, 2)](
        k,
        v,
        kv,
        kv_rows,
        k.stride(0),
        k.stride(1),
        v.stride(0),
        v.stride(1),
        PAGE_SIZE=kv.shape[2],
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        BLOCK_HEADS=triton.next_power_of_2(num_kv_heads),
    )


@triton.jit
def row_write_kernel(
    row_ptr, kv_ptr, kv_rows_ptr, stride, ROW_DIM: tl.constexpr, BLOCK: tl.constexpr
):
    """Grid: tokens. Pages are `[num_pages, PAGE_SIZE, ROW_DIM]`."""
    token = tl.program_id(0).to(tl.int64)
    target = tl.load(kv_rows_ptr + token).to(tl.int64) * ROW_DIM
    dims = tl.arange(0, BLOCK)
    row = tl.load(row_ptr + token * stride + dims, mask=dims < ROW_DIM)
    tl.store(kv_ptr + target + dims, row, mask=dims < ROW_DIM)


def write_rows(k, kv, kv_rows):
    """Write each token's latent row where its row says.

    Shapes: k `[num_tokens, 1, row_dim]`, last dimension contiguous; kv `[num_pages, 1, page_size,
    1, row_dim]`, contiguous; kv_rows `[num_tokens] int32`. Mutates: `kv`.
    """
    num_tokens, _, row_dim = k.shape
    row_write_kernel[(num_tokens,)](
        k,
        kv,
        kv_rows,
        k.stride(0),
        ROW_DIM=row_dim,
        BLOCK=triton.next_power_of_2(row_dim),
    )
