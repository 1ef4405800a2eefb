"""Weights of eight bits, int8 or E4M3, and rows in the same coding.

The weight is s * q, where a scale s is one output's, or, with GROUP, that of GROUP outputs times
GROUP inputs. Rows are kept as they are, or come as codes with a scale for each row, or for each
GROUP of inputs of it. A chunk is 16 elements: what one thread loads at a time.
"""

import triton
import triton.language as tl

from chiplet_triton.kernels.caching import to_cache
from chiplet_triton.kernels.overlap import let_next_start, wait_for_inputs
from chiplet_triton.kernels.tiles import store_tile, tile_rows

ROUNDING = tl.constexpr(12582912.0)
"""1.5 * 2^23: a float32 that is added to it has no places behind the point left."""


@triton.jit
def quantize_rows_kernel(
    x_ptr,
    codes_ptr,
    scales_ptr,
    input_scale_ptr,
    x_stride,
    K: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_GROUPS: tl.constexpr,
    IS_STATIC: tl.constexpr,
    IS_PLAIN: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Codes and scales of rows; see `chiplet.api.quantization`; grid: rows.

    A scale for each 128 inputs if GROUP is 128, else one; given if IS_STATIC. If IS_PLAIN, what is
    written in place of codes of E4M3 is their value, of groups.
    """
    row = tl.program_id(0).to(tl.int64)
    group = tl.arange(0, BLOCK_GROUPS)
    k = group[:, None] * 128 + tl.arange(0, 128)[None, :]
    let_next_start(OVERLAP)
    wait_for_inputs(OVERLAP)
    x = tl.load(x_ptr + row * x_stride + k, mask=k < K, other=0.0).to(tl.float32)
    element: tl.constexpr = tl.float8e4nv if IS_PLAIN else codes_ptr.dtype.element_ty
    most: tl.constexpr = 127.0 if element == tl.int8 else 448.0
    if IS_STATIC:
        scale = tl.load(input_scale_ptr)
        tl.store(scales_ptr + row, scale)
        values = x / scale
    else:
        largest = tl.max(tl.abs(x), axis=1)
        if GROUP == 0:
            largest = tl.max(largest, axis=0)
        scale = tl.where(largest > 0, largest / most, 1.0)
        if GROUP == 0:
            tl.store(scales_ptr + row, scale)
            values = x / scale
        else:
            groups: tl.constexpr = (K + 127) // 128
            if not IS_PLAIN:
                tl.store(scales_ptr + row * groups + group, scale, mask=group < groups)
            values = x / scale[:, None]
    if element == tl.int8:
        bounded = tl.minimum(tl.maximum(values, -most), most)
        codes = ((bounded + ROUNDING) - ROUNDING).to(tl.int8)
    else:
        codes = to_cache(values, element)
    if IS_PLAIN:
        codes = (codes.to(tl.float32) * scale[:, None]).to(codes_ptr.dtype.element_ty)
    tl.store(codes_ptr + row * K + k, codes, mask=k < K)


@triton.jit
def eight_bit_gemv_kernel(
    x_ptr,
    x_scales_ptr,
    w_ptr,
    scales_ptr,
    bias_ptr,
    y_ptr,
    out_features,
    K: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_CHUNKS: tl.constexpr,
    IS_CODED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    IS_GATED: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """One row, without matrix units; grid: blocks of output features."""
    CHUNKS: tl.constexpr = K // 16
    GROUPS: tl.constexpr = (K + GROUP - 1) // GROUP if GROUP else 1
    tile = tl.program_id(0)
    n, is_n = tile_rows(tile, out_features, BLOCK_N, IS_GATED)
    inner = tl.arange(0, 16)
    rows = w_ptr + n.to(tl.int64)[:, None, None] * K
    acc = tl.zeros([BLOCK_N, BLOCK_CHUNKS], tl.float32)
    let_next_start(OVERLAP)
    wait_for_inputs(OVERLAP)
    for first in tl.static_range(0, CHUNKS, BLOCK_CHUNKS):
        chunks = first + tl.arange(0, BLOCK_CHUNKS)
        is_chunk = chunks < CHUNKS
        at = chunks[None, :, None] * 16 + inner[None, None, :]
        if first + BLOCK_CHUNKS <= CHUNKS:
            w = tl.load(rows + at, mask=is_n[:, None, None], other=0.0)
            x = tl.load(x_ptr + at).to(tl.float32)
        else:
            is_w = is_n[:, None, None] & is_chunk[None, :, None]
            w = tl.load(rows + at, mask=is_w, other=0.0)
            x = tl.load(x_ptr + at, mask=is_chunk[None, :, None], other=0.0).to(tl.float32)
        part = tl.sum(w.to(tl.float32) * x, axis=2)
        if GROUP:
            group = chunks * 16 // GROUP
            at_scale = (n // GROUP)[:, None] * GROUPS + group[None, :]
            is_scale = is_n[:, None] & is_chunk[None, :]
            part *= tl.load(scales_ptr + at_scale, mask=is_scale, other=0.0)
            if IS_CODED:
                part *= tl.load(x_scales_ptr + group, mask=is_chunk, other=0.0)[None, :]
        acc += part
    y = tl.sum(acc, axis=1)
    if not GROUP:
        y *= tl.load(scales_ptr + n, mask=is_n, other=0.0)
        if IS_CODED:
            y *= tl.load(x_scales_ptr)
    m = tl.arange(0, 1)
    store_tile(
        y[:, None], bias_ptr, y_ptr, tile, n, is_n, m, m < 1, out_features, HAS_BIAS, IS_GATED
    )


@triton.jit
def add_eight_bits(
    acc, x_columns, x_scales_ptr, w_rows, scales_ptr, n, is_n, m, is_m, first, K: tl.constexpr,
    GROUP: tl.constexpr, BLOCK_K: tl.constexpr, STEP_K: tl.constexpr, IS_CODED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """BLOCK_K inputs; steps of STEP_K that divide K need no look at where it ends.

    Sums of E4M3 leave the matrix units, which keep few bits of them, after each BLOCK_K.
    """
    k = first + tl.arange(0, BLOCK_K)
    if K % STEP_K == 0:
        w = tl.load(w_rows + k[None, :], mask=is_n[:, None], other=0.0)
        x = tl.load(x_columns + k[:, None], mask=is_m[None, :], other=0.0)
    else:
        w = tl.load(w_rows + k[None, :], mask=is_n[:, None] & (k < K)[None, :], other=0.0)
        x = tl.load(x_columns + k[:, None], mask=is_m[None, :] & (k < K)[:, None], other=0.0)
    if GROUP:
        GROUPS: tl.constexpr = (K + GROUP - 1) // GROUP
        group = first // GROUP
        is_inside = first < K
        scale = tl.load(scales_ptr + n // GROUP * GROUPS + group, mask=is_n & is_inside, other=0.0)
        factors = scale[:, None]
        if IS_CODED:
            x_at = x_scales_ptr + m.to(tl.int64) * GROUPS + group
            factors = factors * tl.load(x_at, mask=is_m & is_inside, other=0.0)[None, :]
            acc += tl.dot(w, x) * factors
        else:
            acc += tl.dot(w.to(x.dtype), x, input_precision=PRECISION) * factors
    elif not IS_CODED:
        acc = tl.dot(w.to(x.dtype), x, acc, input_precision=PRECISION)
    elif acc.dtype == tl.int32:
        acc = tl.dot(w, x, acc, out_dtype=tl.int32)
    else:
        acc = tl.dot(w, x, acc, max_num_imprecise_acc=BLOCK_K)
    return acc


@triton.jit
def plain_eight_bits_kernel(
    w_ptr,
    scales_ptr,
    out_ptr,
    K: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Plain weights `[N, K]`; grid: output features, blocks of inputs."""
    n = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    w = tl.load(w_ptr + n * K + k, mask=k < K, other=0.0).to(tl.float32)
    if GROUP:
        GROUPS: tl.constexpr = (K + GROUP - 1) // GROUP
        scale = tl.load(scales_ptr + n // GROUP * GROUPS + k // GROUP, mask=k < K, other=0.0)
    else:
        scale = tl.load(scales_ptr + n)
    tl.store(out_ptr + n * K + k, (w * scale).to(out_ptr.dtype.element_ty), mask=k < K)
