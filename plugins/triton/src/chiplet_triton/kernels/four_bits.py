"""Weights of four bits: unpacked, and multiplied with rows that stay as they are.

An int4 weight is s[n, g] * (q - z[n, g]), with a scale and a zero point for each GROUP of inputs.
An fp4 weight (E2M1) is f[n] * s[n, g] * q: a factor in float32 for each output, and a scale in
eight bits for each GROUP. In groups of 32 (MXFP4) that is E8M0, at most 1, in groups of 16 (NVFP4)
E4M3 over 512.

Bytes lie so that 16 neighbouring ones hold 32 neighbouring elements: the first 16 in their low
halves, the others in their high ones. A chunk is 16 bytes: what one thread loads at a time.
"""

import triton
import triton.language as tl

from chiplet_triton.kernels.overlap import let_next_start, wait_for_inputs
from chiplet_triton.kernels.tiles import store_tile, tile_rows

TWO_63 = tl.constexpr(2.0**63)
TWO_111 = tl.constexpr(2.0**111)
TWO_126 = tl.constexpr(2.0**126)


@triton.jit
def _quarters(x):
    """Elements 0, 1, 2 and 3 of the last dimension, `[..., 4]`."""
    even, odd = tl.split(tl.reshape(x, [x.shape[0], 4, 2, 2]))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def _times_nibble(acc, words, x, PLACE: tl.constexpr, IS_FP4: tl.constexpr):
    """Adds what the four bits at PLACE stand for, times x: (16 + q) * x, or 2^-126 * q * x of fp4.

    Put into the upper bits of the mantissa of 16.0, an integer needs no conversion. E2M1 is a
    float32 without the upper bits of its exponent, subnormal numbers included.
    """
    AT: tl.constexpr = 22 if IS_FP4 else 19
    moved = words << (AT - PLACE) if PLACE <= AT else words >> (PLACE - AT)
    if IS_FP4:
        bits = (moved & 0x1C00000) | ((words << (28 - PLACE)) & -2147483648)
    else:
        bits = (moved & 0x780000) | 0x41800000
    return acc + bits.to(tl.float32, bitcast=True) * x[None, :, :]


@triton.jit
def _dot_halves(words, x, FIRST: tl.constexpr, IS_FP4: tl.constexpr):
    """Sums over the low halves of chunks' bytes (FIRST is 0) or the high ones (4).

    Shapes: words `[N, C, 4] int32`, x `[C, 4, 4]`; returns `[N, C]`.
    """
    x_0, x_1, x_2, x_3 = _quarters(x)
    acc = tl.zeros([words.shape[0], words.shape[1], 4], tl.float32)
    acc = _times_nibble(acc, words, x_0, FIRST, IS_FP4)
    acc = _times_nibble(acc, words, x_1, FIRST + 8, IS_FP4)
    acc = _times_nibble(acc, words, x_2, FIRST + 16, IS_FP4)
    acc = _times_nibble(acc, words, x_3, FIRST + 24, IS_FP4)
    return tl.sum(acc, axis=2)


@triton.jit
def fp4_scale(code, GROUP: tl.constexpr):
    """The value of a group's scale; see the module. Shapes: any `uint8`; returns float32."""
    bits = code.to(tl.int32)
    if GROUP == 32:
        value = (bits << 23).to(tl.float32, bitcast=True)
    else:
        small = ((bits & 0x7F) << 20).to(tl.float32, bitcast=True)
        value = tl.where(bits >= 128, -small, small) * TWO_111  # 2^120 / 512
    return value


@triton.jit
def _fp4_chunks(words, x_low, x_high, scales_at, is_chunk, GROUP: tl.constexpr):
    """Sums over chunks of scale * q * x. Shapes: as `_dot_halves`; scales_at, is_chunk `[N, C]`."""
    # Half of the power of two that q lacks goes to x, half to the sum, so that no product is
    # subnormal.
    low = _dot_halves(words, x_low * TWO_63, 0, True)
    high = _dot_halves(words, x_high * TWO_63, 4, True)
    scale = fp4_scale(tl.load(scales_at, mask=is_chunk, other=0), GROUP)
    second = scale
    if GROUP == 16:
        second = fp4_scale(tl.load(scales_at + 1, mask=is_chunk, other=0), GROUP)
    return (scale * low + second * high) * TWO_63


@triton.jit
def _int4_chunks(words, x_low, x_high, scales_at, zeros_at, is_chunk):
    """Sums over chunks of scale * (q - zero) * x. Shapes: as `_fp4_chunks`."""
    dot = _dot_halves(words, x_low, 0, False) + _dot_halves(words, x_high, 4, False)
    scale = tl.load(scales_at, mask=is_chunk, other=0.0)
    zero = tl.load(zeros_at, mask=is_chunk, other=0).to(tl.float32) + 16.0
    total = tl.sum(tl.sum(x_low + x_high, axis=2), axis=1)
    return scale * (dot - zero * total[None, :])


@triton.jit
def four_bit_gemv_kernel(
    x_ptr,
    w_ptr,
    scales_ptr,
    beside_ptr,
    bias_ptr,
    y_ptr,
    out_features,
    K: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_CHUNKS: tl.constexpr,
    IS_FP4: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    IS_GATED: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """One row, without matrix units; grid: blocks of output features.

    `beside` are zero points of int4, factors of fp4.
    """
    CHUNKS: tl.constexpr = K // 32
    tile = tl.program_id(0)
    n, is_n = tile_rows(tile, out_features, BLOCK_N, IS_GATED)
    inner = tl.arange(0, 4)
    words_ptr = w_ptr.to(tl.pointer_type(tl.int32))
    rows = words_ptr + n.to(tl.int64)[:, None, None] * (CHUNKS * 4)
    groups = n.to(tl.int64)[:, None] * (K // GROUP)
    elements = inner[None, :, None] * 4 + inner[None, None, :]
    acc = tl.zeros([BLOCK_N, BLOCK_CHUNKS], tl.float32)
    let_next_start(OVERLAP)
    wait_for_inputs(OVERLAP)
    for first in tl.static_range(0, CHUNKS, BLOCK_CHUNKS):
        chunks = first + tl.arange(0, BLOCK_CHUNKS)
        is_chunk = chunks < CHUNKS
        x_at = x_ptr + chunks[:, None, None] * 32 + elements
        w_at = rows + chunks[None, :, None] * 4 + inner[None, None, :]
        if first + BLOCK_CHUNKS <= CHUNKS:
            words = tl.load(w_at, mask=is_n[:, None, None], other=0)
            x_low = tl.load(x_at).to(tl.float32)
            x_high = tl.load(x_at + 16).to(tl.float32)
        else:
            words = tl.load(w_at, mask=is_n[:, None, None] & is_chunk[None, :, None], other=0)
            x_low = tl.load(x_at, mask=is_chunk[:, None, None], other=0.0).to(tl.float32)
            x_high = tl.load(x_at + 16, mask=is_chunk[:, None, None], other=0.0).to(tl.float32)
        group = groups + (chunks * 32 // GROUP)[None, :]
        is_group = is_n[:, None] & is_chunk[None, :]
        if IS_FP4:
            acc += _fp4_chunks(words, x_low, x_high, scales_ptr + group, is_group, GROUP)
        else:
            acc += _int4_chunks(
                words, x_low, x_high, scales_ptr + group, beside_ptr + group, is_group
            )
    y = tl.sum(acc, axis=1)
    if IS_FP4:
        y *= tl.load(beside_ptr + n, mask=is_n, other=0.0)
    m = tl.arange(0, 1)
    store_tile(
        y[:, None], bias_ptr, y_ptr, tile, n, is_n, m, m < 1, out_features, HAS_BIAS, IS_GATED
    )


@triton.jit
def add_int4_group(
    acc, x_columns, w_rows, scales_ptr, zeros_ptr, n, is_n, is_m, first, K: tl.constexpr,
    GROUP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One group, exact in any type before its scale; a group past K is none."""
    BYTES: tl.constexpr = GROUP // 2
    inner = tl.arange(0, BYTES)
    is_inside = first < K
    is_w = is_n[:, None] & is_inside
    w = tl.load(w_rows + first // 2 + inner[None, :], mask=is_w, other=0)
    k = first + inner // 16 * 32 + inner % 16
    is_x = is_m[None, :] & is_inside
    x_low = tl.load(x_columns + k[:, None], mask=is_x, other=0.0)
    x_high = tl.load(x_columns + k[:, None] + 16, mask=is_x, other=0.0)
    group = n.to(tl.int64) * (K // GROUP) + first // GROUP
    scale = tl.load(scales_ptr + group, mask=is_n & is_inside, other=0.0)
    zero = tl.load(zeros_ptr + group, mask=is_n & is_inside, other=0).to(tl.int8)
    low = ((w & 15).to(tl.int8) - zero[:, None]).to(x_low.dtype)
    high = ((w >> 4).to(tl.int8) - zero[:, None]).to(x_low.dtype)
    part = tl.dot(low, x_low, input_precision=PRECISION)
    part = tl.dot(high, x_high, part, input_precision=PRECISION)
    return acc + scale[:, None] * part


@triton.jit
def _fp4_values(codes, scale, ELEMENT: tl.constexpr):
    """Codes in the lower four bits times their scales, exact in 16 bits.

    Shapes: codes `[N, C, 16]` and scale `[N, C]`; returns `[N, 16 * C]`.
    """
    bits = codes.to(tl.int32)
    bits = ((bits & 7) << 22) | ((bits & 8) << 28)
    values = bits.to(tl.float32, bitcast=True) * (scale * TWO_126)[:, :, None]
    return tl.reshape(values.to(ELEMENT), [codes.shape[0], codes.shape[1] * 16])


@triton.jit
def add_fp4(
    acc, x_columns, w_rows, scales_ptr, n, is_n, is_m, first, K: tl.constexpr,
    GROUP: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """BLOCK_K inputs, before the factors of outputs; inputs past K are none."""
    CHUNKS: tl.constexpr = BLOCK_K // 32
    chunk, byte = tl.arange(0, CHUNKS), tl.arange(0, 16)
    is_inside = first + chunk * 32 < K
    is_w = is_n[:, None] & is_inside[None, :]
    w_at = first // 2 + chunk[None, :, None] * 16 + byte[None, None, :]
    w = tl.load(w_rows[:, :, None] + w_at, mask=is_w[:, :, None], other=0)
    group = n.to(tl.int64)[:, None] * (K // GROUP) + ((first + chunk * 32) // GROUP)[None, :]
    scale = fp4_scale(tl.load(scales_ptr + group, mask=is_w, other=0), GROUP)
    inner = tl.arange(0, BLOCK_K // 2)
    k = first + inner // 16 * 32 + inner % 16
    is_x = is_m[None, :] & (k < K)[:, None]
    x_low = tl.load(x_columns + k[:, None], mask=is_x, other=0.0)
    x_high = tl.load(x_columns + k[:, None] + 16, mask=is_x, other=0.0)
    low = _fp4_values(w & 15, scale, x_low.dtype)
    if GROUP == 16:
        scale = fp4_scale(tl.load(scales_ptr + group + 1, mask=is_w, other=0), GROUP)
    high = _fp4_values(w >> 4, scale, x_low.dtype)
    acc = tl.dot(low, x_low, acc, input_precision=PRECISION)
    return tl.dot(high, x_high, acc, input_precision=PRECISION)


@triton.jit
def plain_four_bits_kernel(
    w_ptr,
    scales_ptr,
    beside_ptr,
    out_ptr,
    K: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_FP4: tl.constexpr,
):
    """Plain weights `[N, K]`; grid: output features, blocks of bytes."""
    n = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_inside = at < K // 2
    w = tl.load(w_ptr + n * (K // 2) + at, mask=is_inside, other=0)
    k = at // 16 * 32 + at % 16
    group = n * (K // GROUP) + k // GROUP
    if IS_FP4:
        factor = tl.load(beside_ptr + n) * TWO_63
        low_scale = fp4_scale(tl.load(scales_ptr + group, mask=is_inside, other=0), GROUP)
        high_scale = low_scale
        if GROUP == 16:
            high_scale = fp4_scale(tl.load(scales_ptr + group + 1, mask=is_inside, other=0), GROUP)
        low, high = (w & 15).to(tl.int32), (w >> 4).to(tl.int32)
        low = ((low & 7) << 22) | ((low & 8) << 28)
        high = ((high & 7) << 22) | ((high & 8) << 28)
        low = low.to(tl.float32, bitcast=True) * TWO_63 * (low_scale * factor)
        high = high.to(tl.float32, bitcast=True) * TWO_63 * (high_scale * factor)
    else:
        scale = tl.load(scales_ptr + group, mask=is_inside, other=0.0)
        zero = tl.load(beside_ptr + group, mask=is_inside, other=0).to(tl.float32)
        low = ((w & 15).to(tl.float32) - zero) * scale
        high = ((w >> 4).to(tl.float32) - zero) * scale
    element = out_ptr.dtype.element_ty
    tl.store(out_ptr + n * K + k, low.to(element), mask=is_inside)
    tl.store(out_ptr + n * K + k + 16, high.to(element), mask=is_inside)
