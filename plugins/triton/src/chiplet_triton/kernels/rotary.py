"""Rotation of queries and keys by position."""

import triton
import triton.language as tl

from chiplet_triton.kernels.overlap import let_next_start, wait_for_inputs


@triton.jit
def _rotate_heads(
    x_ptr,
    out_ptr,
    cos,
    sin,
    num_heads,
    head_stride,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
):
    heads = tl.arange(0, BLOCK_HEADS)[:, None]
    pairs = tl.arange(0, BLOCK_HALF)[None, :]
    is_inside = (heads < num_heads) & (pairs < HALF)
    first = tl.load(x_ptr + heads * head_stride + pairs, mask=is_inside, other=0.0)
    second = tl.load(x_ptr + heads * head_stride + HALF + pairs, mask=is_inside, other=0.0)
    first = first.to(tl.float32)
    second = second.to(tl.float32)
    out = out_ptr + heads * HEAD_DIM + pairs
    element = out_ptr.dtype.element_ty
    tl.store(out, (first * cos - second * sin).to(element), mask=is_inside)
    tl.store(out + HALF, (second * cos + first * sin).to(element), mask=is_inside)


@triton.jit
def rotary_kernel(
    q_ptr,
    k_ptr,
    positions_ptr,
    cos_sin_ptr,
    q_out_ptr,
    k_out_ptr,
    num_heads,
    num_kv_heads,
    q_stride,
    q_head_stride,
    k_stride,
    k_head_stride,
    HEAD_DIM: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_KV_HEADS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """One program a token: all its heads share one row of cosines and sines."""
    HALF: tl.constexpr = HEAD_DIM // 2
    token = tl.program_id(0).to(tl.int64)
    let_next_start(OVERLAP)
    wait_for_inputs(OVERLAP)
    position = tl.load(positions_ptr + token).to(tl.int64)
    pairs = tl.arange(0, BLOCK_HALF)[None, :]
    row = cos_sin_ptr + position * HEAD_DIM + pairs
    cos = tl.load(row, mask=pairs < HALF, other=0.0)
    sin = tl.load(row + HALF, mask=pairs < HALF, other=0.0)
    _rotate_heads(
        q_ptr + token * q_stride,
        q_out_ptr + token * num_heads * HEAD_DIM,
        cos,
        sin,
        num_heads,
        q_head_stride,
        HEAD_DIM,
        HALF,
        BLOCK_HALF,
        BLOCK_HEADS,
    )
    _rotate_heads(
        k_ptr + token * k_stride,
        k_out_ptr + token * num_kv_heads * HEAD_DIM,
        cos,
        sin,
        num_kv_heads,
        k_head_stride,
        HEAD_DIM,
        HALF,
        BLOCK_HALF,
        BLOCK_KV_HEADS,
    )
