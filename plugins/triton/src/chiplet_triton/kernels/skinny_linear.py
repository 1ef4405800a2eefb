"""Products of a few rows with a large weight: as fast as the weight can be read.

`y[m, n] = sum_k x[m, k] w[n, k]`, weights as they come, `[n, k]` row by row. With a gate, what is
written is silu(first half) * second half.
"""

import triton
import triton.language as tl

from chiplet_triton.kernels.overlap import let_next_start, wait_for_inputs
from chiplet_triton.kernels.tiles import add_splits, store_tile, tile_rows


@triton.jit
def gemv_kernel(
    x_ptr,
    w_ptr,
    bias_ptr,
    y_ptr,
    out_features,
    x_stride,
    K: tl.constexpr,
    M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    IS_GATED: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """A few rows, without matrix units; grid: blocks of output features.

    The first block of weights is on its way before the inputs are waited for.
    """
    tile = tl.program_id(0)
    n, is_n = tile_rows(tile, out_features, BLOCK_N, IS_GATED)
    k = tl.arange(0, BLOCK_K)
    m = tl.arange(0, M)
    w_rows = w_ptr + n.to(tl.int64)[:, None] * K + k[None, :]
    w = tl.load(w_rows, mask=is_n[:, None] & (k < K)[None, :], other=0.0)
    let_next_start(OVERLAP)
    wait_for_inputs(OVERLAP)
    x_rows = x_ptr + m[:, None] * x_stride + k[None, :]
    x = tl.load(x_rows, mask=(k < K)[None, :], other=0.0)
    acc = x.to(tl.float32)[None, :, :] * w.to(tl.float32)[:, None, :]
    for first in tl.static_range(BLOCK_K, K, BLOCK_K):
        is_k = first + k < K
        w = tl.load(w_rows + first, mask=is_n[:, None] & is_k[None, :], other=0.0)
        x = tl.load(x_rows + first, mask=is_k[None, :], other=0.0)
        acc += x.to(tl.float32)[None, :, :] * w.to(tl.float32)[:, None, :]
    store_tile(
        tl.sum(acc, axis=2), bias_ptr, y_ptr, tile, n, is_n, m, m < M, out_features, HAS_BIAS,
        IS_GATED,
    )  # fmt: skip


@triton.jit(do_not_specialize=["num_rows"])
def skinny_kernel(
    x_ptr,
    w_ptr,
    bias_ptr,
    y_ptr,
    partial_ptr,
    arrivals_ptr,
    num_rows,
    out_features,
    x_stride,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLITS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    IS_GATED: tl.constexpr,
    PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Up to BLOCK_M rows; grid: blocks of output features, splits of K.

    The weight is the left operand, so that its many rows fill the matrix units.
    """
    tile = tl.program_id(0)
    split = tl.program_id(1)
    n, is_n = tile_rows(tile, out_features, BLOCK_N, IS_GATED)
    m = tl.arange(0, BLOCK_M)
    is_m = m < num_rows
    steps: tl.constexpr = (K + BLOCK_K * SPLITS - 1) // (BLOCK_K * SPLITS)
    k = split * steps * BLOCK_K + tl.arange(0, BLOCK_K)
    w_rows = w_ptr + n.to(tl.int64)[:, None] * K
    x_columns = x_ptr + m[None, :] * x_stride
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    let_next_start(OVERLAP)
    wait_for_inputs(OVERLAP)
    for _ in range(steps):
        if K % (BLOCK_K * SPLITS) == 0:
            w = tl.load(w_rows + k[None, :], mask=is_n[:, None], other=0.0)
            x = tl.load(x_columns + k[:, None], mask=is_m[None, :], other=0.0)
        else:
            w = tl.load(w_rows + k[None, :], mask=is_n[:, None] & (k < K)[None, :], other=0.0)
            x = tl.load(x_columns + k[:, None], mask=is_m[None, :] & (k < K)[:, None], other=0.0)
        acc = tl.dot(w, x, acc, input_precision=PRECISION)
        k += BLOCK_K
    if SPLITS > 1:
        acc, is_last = add_splits(acc, partial_ptr, arrivals_ptr, tile, split, SPLITS)
        if not is_last:
            return
    store_tile(acc, bias_ptr, y_ptr, tile, n, is_n, m, is_m, out_features, HAS_BIAS, IS_GATED)
