"""Products of a few rows with a large weight: as fast as the weight can be read.

`y[m, n] = sum_k x[m, k] w[n, k]`, weights as they come, `[n, k]` row by row.
"""

import triton
import triton.language as tl

from chiplet_triton.kernels.overlap import let_next_start, wait_for_inputs


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
    OVERLAP: tl.constexpr,
):
    """A few rows, without matrix units; grid: blocks of output features.

    The first block of weights is on its way before the inputs are waited for.
    """
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    m = tl.arange(0, M)
    is_n = n < out_features
    w_rows = w_ptr + n.to(tl.int64)[:, None] * K + k[None, :]
    w = tl.load(w_rows, mask=is_n[:, None] & (k < K)[None, :], other=0.0)
    let_next_start(OVERLAP)
    wait_for_inputs(OVERLAP)
    x_rows = x_ptr + m[:, None] * x_stride + k[None, :]
    x = tl.load(x_rows, mask=(k < K)[None, :], other=0.0)
    acc = x.to(tl.float32)[:, None, :] * w.to(tl.float32)[None, :, :]
    for first in tl.static_range(BLOCK_K, K, BLOCK_K):
        is_k = first + k < K
        w = tl.load(w_rows + first, mask=is_n[:, None] & is_k[None, :], other=0.0)
        x = tl.load(x_rows + first, mask=is_k[None, :], other=0.0)
        acc += x.to(tl.float32)[:, None, :] * w.to(tl.float32)[None, :, :]
    y = tl.sum(acc, axis=2)
    if HAS_BIAS:
        y += tl.load(bias_ptr + n, mask=is_n, other=0.0).to(tl.float32)[None, :]
    target = y_ptr + m[:, None] * out_features + n[None, :]
    tl.store(target, y.to(y_ptr.dtype.element_ty), mask=is_n[None, :])


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
    PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Up to BLOCK_M rows; grid: blocks of output features, splits of K.

    The weight is the left operand, so that its many rows fill the matrix units. Of several splits
    the one that arrives last adds up all in their order: the result does not depend on who it is.
    `arrivals` holds zeros before and after.
    """
    tile = tl.program_id(0)
    split = tl.program_id(1)
    n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.arange(0, BLOCK_M)
    is_n = n < out_features
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
    target = y_ptr + m[None, :].to(tl.int64) * out_features + n[:, None]
    is_stored = is_n[:, None] & is_m[None, :]
    if SPLITS > 1:
        inner = tl.arange(0, BLOCK_N)[:, None] * BLOCK_M + m[None, :]
        parts = partial_ptr + tile * SPLITS * BLOCK_N * BLOCK_M + inner
        tl.store(parts + split * BLOCK_N * BLOCK_M, acc)
        tl.debug_barrier()  # all of the program's stores come before its arrival
        arrived = tl.atomic_add(arrivals_ptr + tile, 1, sem="acq_rel", scope="gpu")
        if arrived < SPLITS - 1:
            return
        tl.debug_barrier()
        tl.store(arrivals_ptr + tile, 0)
        acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        for other in tl.static_range(SPLITS):
            acc += tl.load(parts + other * BLOCK_N * BLOCK_M, cache_modifier=".cg")
    if HAS_BIAS:
        acc += tl.load(bias_ptr + n, mask=is_n, other=0.0).to(tl.float32)[:, None]
    tl.store(target, acc.to(y_ptr.dtype.element_ty), mask=is_stored)
