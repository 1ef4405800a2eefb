"""Products of any number of rows with weights of eight and four bits, on matrix units.

`y[m, n] = sum_k x[m, k] w[n, k]`; `four_bits` and `eight_bits` say how weights and rows are coded.
"""

import triton
import triton.language as tl

from chiplet_triton.kernels.eight_bits import add_eight_bits
from chiplet_triton.kernels.four_bits import add_fp4, add_int4_group
from chiplet_triton.kernels.overlap import let_next_start, wait_for_inputs
from chiplet_triton.kernels.tiles import add_splits, store_tile, tile_rows

TOGETHER = tl.constexpr(8)
"""Blocks of rows that follow one another with the same weights, so that caches hold both."""


@triton.jit
def _place(num_rows, out_features, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Tile and block of a program, where many blocks of rows share a grid of one dimension."""
    program = tl.program_id(0)
    tiles = (out_features + BLOCK_N - 1) // BLOCK_N
    blocks = (num_rows + BLOCK_M - 1) // BLOCK_M
    first = program // (TOGETHER * tiles) * TOGETHER
    inside = program % (TOGETHER * tiles)
    together = tl.minimum(blocks - first, TOGETHER)
    return inside // together, first + inside % together


@triton.jit
def add_step(
    acc, x_columns, x_scales_ptr, w_rows, scales_ptr, beside_ptr, n, is_n, m, is_m, first,
    K: tl.constexpr, GROUP: tl.constexpr, BLOCK_K: tl.constexpr, STEP_K: tl.constexpr,
    CODING: tl.constexpr, IS_CODED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """BLOCK_K inputs of weights in any coding; n and m are rows of the weight and of x."""
    if CODING == "int4":
        acc = add_int4_group(
            acc, x_columns, w_rows, scales_ptr, beside_ptr, n, is_n, is_m, first, K, GROUP,
            PRECISION,
        )  # fmt: skip
    elif CODING == "fp4":
        acc = add_fp4(
            acc, x_columns, w_rows, scales_ptr, n, is_n, is_m, first, K, GROUP, BLOCK_K, PRECISION
        )
    else:
        acc = add_eight_bits(
            acc, x_columns, x_scales_ptr, w_rows, scales_ptr, n, is_n, m, is_m, first, K, GROUP,
            BLOCK_K, STEP_K, IS_CODED, PRECISION,
        )  # fmt: skip
    return acc


@triton.jit
def scaled(
    total, x_scales_ptr, scales_ptr, beside_ptr, n, is_n, m, is_m,
    GROUP: tl.constexpr, CODING: tl.constexpr, IS_CODED: tl.constexpr,
):  # fmt: skip
    """Sums times what is one output's and one row's."""
    if CODING == "fp4":
        total *= tl.load(beside_ptr + n, mask=is_n, other=0.0)[:, None]
    elif CODING == "eight" and not GROUP:
        total *= tl.load(scales_ptr + n, mask=is_n, other=0.0)[:, None]
        if IS_CODED:
            total *= tl.load(x_scales_ptr + m, mask=is_m, other=0.0)[None, :]
    return total


@triton.jit(do_not_specialize=["num_rows"])
def quantized_kernel(
    x_ptr,
    x_scales_ptr,
    w_ptr,
    scales_ptr,
    beside_ptr,
    bias_ptr,
    y_ptr,
    partial_ptr,
    arrivals_ptr,
    num_rows,
    out_features,
    x_stride,
    K: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLITS: tl.constexpr,
    CODING: tl.constexpr,
    IS_CODED: tl.constexpr,
    HAS_MANY_BLOCKS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    IS_GATED: tl.constexpr,
    PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Grid: blocks of output features, splits of K, blocks of rows; see `skinny_kernel`.

    With HAS_MANY_BLOCKS all of them stand in the first dimension. With int4 BLOCK_K is GROUP, with
    scales of blocks it divides GROUP. IS_CODED rows come with their scales.
    """
    split = tl.program_id(1)
    if HAS_MANY_BLOCKS:
        tile, block = _place(num_rows, out_features, BLOCK_M, BLOCK_N)
    else:
        tile, block = tl.program_id(0), tl.program_id(2)
    n, is_n = tile_rows(tile, out_features, BLOCK_N, IS_GATED)
    m = block * BLOCK_M + tl.arange(0, BLOCK_M)
    is_m = m < num_rows
    STEPS: tl.constexpr = (K + BLOCK_K * SPLITS - 1) // (BLOCK_K * SPLITS)
    ROW_BYTES: tl.constexpr = K if CODING == "eight" else K // 2
    IS_INTEGER: tl.constexpr = IS_CODED and w_ptr.dtype.element_ty == tl.int8
    w_rows = w_ptr + n.to(tl.int64)[:, None] * ROW_BYTES
    x_columns = x_ptr + m[None, :].to(tl.int64) * x_stride
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.int32 if IS_INTEGER else tl.float32)
    let_next_start(OVERLAP)
    wait_for_inputs(OVERLAP)
    for step in range(STEPS):
        first = (split * STEPS + step) * BLOCK_K
        acc = add_step(
            acc, x_columns, x_scales_ptr, w_rows, scales_ptr, beside_ptr, n, is_n, m, is_m, first,
            K, GROUP, BLOCK_K, BLOCK_K * SPLITS, CODING, IS_CODED, PRECISION,
        )  # fmt: skip
    total = acc.to(tl.float32)
    if SPLITS > 1:
        at = block * tl.num_programs(0) + tile
        total, is_last = add_splits(total, partial_ptr, arrivals_ptr, at, split, SPLITS)
        if not is_last:
            return
    total = scaled(
        total, x_scales_ptr, scales_ptr, beside_ptr, n, is_n, m, is_m, GROUP, CODING, IS_CODED
    )
    store_tile(total, bias_ptr, y_ptr, tile, n, is_n, m, is_m, out_features, HAS_BIAS, IS_GATED)
