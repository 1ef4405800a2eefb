"""Products of rows with the weights of the experts that they picked.

Pairs of a token and one of its experts are sorted by expert; `starts` `[num_experts + 1]` says
where each expert's pairs begin. A block is up to BLOCK_M pairs of one expert: expert e's blocks
begin at block starts[e] // BLOCK_M + e, so that their number is known without reading any.
"""

import triton
import triton.language as tl

from chiplet_triton.kernels.overlap import let_next_start, wait_for_inputs
from chiplet_triton.kernels.quantized_linear import add_step, scaled
from chiplet_triton.kernels.tiles import store_tile, tile_rows


@triton.jit
def _find_pairs(block, starts_ptr, num_experts, BLOCK_M: tl.constexpr):
    """The block's expert, its first pair, and where the expert's pairs end."""
    expert = 0
    high = num_experts
    while high - expert > 1:
        middle = (expert + high) // 2
        first = tl.load(starts_ptr + middle) // BLOCK_M + middle
        if first <= block:
            expert = middle
        else:
            high = middle
    start = tl.load(starts_ptr + expert)
    end = tl.load(starts_ptr + expert + 1)
    return expert, start + (block - start // BLOCK_M - expert) * BLOCK_M, end


@triton.jit
def _add_product(acc, w_rows, x_columns, is_n, is_m, K: tl.constexpr, BLOCK_K: tl.constexpr,
                 PRECISION: tl.constexpr):  # fmt: skip
    """The weight is the left operand, so that its many rows fill the matrix units."""
    k = tl.arange(0, BLOCK_K)
    for _ in range((K + BLOCK_K - 1) // BLOCK_K):
        if K % BLOCK_K == 0:
            w = tl.load(w_rows + k[None, :], mask=is_n[:, None], other=0.0)
            x = tl.load(x_columns + k[:, None], mask=is_m[None, :], other=0.0)
        else:
            w = tl.load(w_rows + k[None, :], mask=is_n[:, None] & (k < K)[None, :], other=0.0)
            x = tl.load(x_columns + k[:, None], mask=is_m[None, :] & (k < K)[:, None], other=0.0)
        acc = tl.dot(w, x, acc, input_precision=PRECISION)
        k += BLOCK_K
    return acc


@triton.jit(do_not_specialize=["num_experts", "top_k"])
def gate_up_kernel(
    x_ptr,
    w_ptr,
    order_ptr,
    starts_ptr,
    out_ptr,
    num_experts,
    top_k,
    x_stride,
    K: tl.constexpr,
    N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """silu(gate(x)) * up(x) of each pair, in sorted order; grid: blocks of N outputs, blocks."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    let_next_start(OVERLAP)
    wait_for_inputs(OVERLAP)
    expert, first, end = _find_pairs(tl.program_id(1), starts_ptr, num_experts, BLOCK_M)
    if first >= end:
        return
    pairs = first + tl.arange(0, BLOCK_M)
    is_m = pairs < end
    is_n = n < N
    tokens = tl.load(order_ptr + pairs, mask=is_m, other=0) // top_k
    x_columns = x_ptr + tokens.to(tl.int64)[None, :] * x_stride
    gate_rows = w_ptr + (expert.to(tl.int64) * 2 * N + n)[:, None] * K
    zeros = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    gate = _add_product(zeros, gate_rows, x_columns, is_n, is_m, K, BLOCK_K, PRECISION)
    up_rows = gate_rows + N * K
    up = _add_product(zeros, up_rows, x_columns, is_n, is_m, K, BLOCK_K, PRECISION)
    out = gate * tl.sigmoid(gate) * up
    target = out_ptr + pairs.to(tl.int64)[None, :] * N + n[:, None]
    tl.store(target, out.to(out_ptr.dtype.element_ty), mask=is_n[:, None] & is_m[None, :])


@triton.jit(do_not_specialize=["num_experts"])
def down_kernel(
    x_ptr,
    w_ptr,
    order_ptr,
    starts_ptr,
    weights_ptr,
    out_ptr,
    num_experts,
    K: tl.constexpr,
    N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """What each pair adds to its token, in the order of tokens; grid as `gate_up_kernel`."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    let_next_start(OVERLAP)
    wait_for_inputs(OVERLAP)
    expert, first, end = _find_pairs(tl.program_id(1), starts_ptr, num_experts, BLOCK_M)
    if first >= end:
        return
    pairs = first + tl.arange(0, BLOCK_M)
    is_m = pairs < end
    is_n = n < N
    x_columns = x_ptr + pairs.to(tl.int64)[None, :] * K
    w_rows = w_ptr + (expert.to(tl.int64) * N + n)[:, None] * K
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    acc = _add_product(acc, w_rows, x_columns, is_n, is_m, K, BLOCK_K, PRECISION)
    places = tl.load(order_ptr + pairs, mask=is_m, other=0).to(tl.int64)
    share = tl.load(weights_ptr + places, mask=is_m, other=0.0)
    target = out_ptr + places[None, :] * N + n[:, None]
    tl.store(target, acc * share[None, :], mask=is_n[:, None] & is_m[None, :])


@triton.jit(do_not_specialize=["num_experts", "top_k"])
def quantized_experts_kernel(
    x_ptr,
    x_scales_ptr,
    w_ptr,
    scales_ptr,
    beside_ptr,
    order_ptr,
    starts_ptr,
    weights_ptr,
    out_ptr,
    num_experts,
    top_k,
    x_stride,
    K: tl.constexpr,
    N: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    CODING: tl.constexpr,
    IS_CODED: tl.constexpr,
    IS_GATED: tl.constexpr,
    PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """`gate_up_kernel` if IS_GATED, else `down_kernel`, with weights as in `quantized_kernel`.

    Experts stand one above the other, N outputs each, gate and up together.
    """
    tile = tl.program_id(0)
    n, is_n = tile_rows(tile, N, BLOCK_N, IS_GATED)
    let_next_start(OVERLAP)
    wait_for_inputs(OVERLAP)
    expert, first, end = _find_pairs(tl.program_id(1), starts_ptr, num_experts, BLOCK_M)
    if first >= end:
        return
    pairs = first + tl.arange(0, BLOCK_M)
    is_m = pairs < end
    places = tl.load(order_ptr + pairs, mask=is_m, other=0)
    m = places // top_k if IS_GATED else pairs
    n = expert * N + n
    ROW_BYTES: tl.constexpr = K if CODING == "eight" else K // 2
    IS_INTEGER: tl.constexpr = IS_CODED and w_ptr.dtype.element_ty == tl.int8
    w_rows = w_ptr + n.to(tl.int64)[:, None] * ROW_BYTES
    x_columns = x_ptr + m.to(tl.int64)[None, :] * x_stride
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.int32 if IS_INTEGER else tl.float32)
    for step in range((K + BLOCK_K - 1) // BLOCK_K):
        acc = add_step(
            acc, x_columns, x_scales_ptr, w_rows, scales_ptr, beside_ptr, n, is_n, m, is_m,
            step * BLOCK_K, K, GROUP, BLOCK_K, BLOCK_K, CODING, IS_CODED, PRECISION,
        )  # fmt: skip
    total = scaled(
        acc.to(tl.float32), x_scales_ptr, scales_ptr, beside_ptr, n, is_n, m, is_m, GROUP, CODING,
        IS_CODED,
    )  # fmt: skip
    if IS_GATED:
        store_tile(total, None, out_ptr, tile, n, is_n, pairs, is_m, N, False, True)
    else:
        total *= tl.load(weights_ptr + places, mask=is_m, other=0.0)[None, :]
        store_tile(total, None, out_ptr, tile, n - expert * N, is_n, places, is_m, N, False, False)
