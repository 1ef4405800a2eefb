"""Products with weights in eight bits (E4M3) or four; inputs stay as they are.

`y[m, n] = sum_k x[m, k] w[n, k]`. A weight of eight bits is s[n] * q, one byte an element. A weight
of four bits is s[n, g] * (q - z[n, g]) with a scale and a zero point for each GROUP of inputs. Its
bytes lie so that 16 neighbouring ones hold 32 neighbouring elements: the first 16 in their low
halves, the others in their high ones. A chunk is 16 bytes: what one thread loads at a time.
"""

import triton
import triton.language as tl

from chiplet_triton.kernels.overlap import let_next_start, wait_for_inputs


@triton.jit
def _quarters(x):
    """Elements 0, 1, 2 and 3 of the last dimension, `[..., 4]`."""
    even, odd = tl.split(tl.reshape(x, [x.shape[0], 4, 2, 2]))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def _times_nibble(acc, words, x, PLACE: tl.constexpr):
    """Adds (16 + q) * x, where q are the four bits at PLACE.

    Put into the upper bits of the mantissa of 16.0, q needs no conversion.
    """
    moved = words << (19 - PLACE) if PLACE <= 19 else words >> (PLACE - 19)
    number = ((moved & 0x780000) | 0x41800000).to(tl.float32, bitcast=True)
    return acc + number * x[None, :, :]


@triton.jit
def _dot_int4(words, x_low, x_high):
    """Sums over chunks of (16 + q) * x.

    Shapes: words `[N, C, 4] int32`, x_low and x_high `[C, 4, 4]`; returns `[N, C]`.
    """
    low_0, low_1, low_2, low_3 = _quarters(x_low)
    high_0, high_1, high_2, high_3 = _quarters(x_high)
    acc = tl.zeros([words.shape[0], words.shape[1], 4], tl.float32)
    acc = _times_nibble(acc, words, low_0, 0)
    acc = _times_nibble(acc, words, high_0, 4)
    acc = _times_nibble(acc, words, low_1, 8)
    acc = _times_nibble(acc, words, high_1, 12)
    acc = _times_nibble(acc, words, low_2, 16)
    acc = _times_nibble(acc, words, high_2, 20)
    acc = _times_nibble(acc, words, low_3, 24)
    acc = _times_nibble(acc, words, high_3, 28)
    return tl.sum(acc, axis=2)


@triton.jit
def int4_gemv_kernel(
    x_ptr,
    w_ptr,
    scales_ptr,
    zeros_ptr,
    bias_ptr,
    y_ptr,
    out_features,
    K: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_CHUNKS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """One row, without matrix units; grid: blocks of output features."""
    CHUNKS: tl.constexpr = K // 32
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_n = n < out_features
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
        scale = tl.load(scales_ptr + group, mask=is_group, other=0.0)
        zero = tl.load(zeros_ptr + group, mask=is_group, other=0).to(tl.float32) + 16.0
        total = tl.sum(tl.sum(x_low + x_high, axis=2), axis=1)
        acc += scale * (_dot_int4(words, x_low, x_high) - zero * total[None, :])
    y = tl.sum(acc, axis=1)
    if HAS_BIAS:
        y += tl.load(bias_ptr + n, mask=is_n, other=0.0).to(tl.float32)
    tl.store(y_ptr + n, y.to(y_ptr.dtype.element_ty), mask=is_n)


@triton.jit
def fp8_gemv_kernel(
    x_ptr,
    w_ptr,
    scales_ptr,
    bias_ptr,
    y_ptr,
    out_features,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_CHUNKS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """One row, without matrix units; grid: blocks of output features."""
    CHUNKS: tl.constexpr = K // 16
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_n = n < out_features
    inner = tl.arange(0, 16)
    rows = w_ptr + n.to(tl.int64)[:, None, None] * K
    acc = tl.zeros([BLOCK_N, BLOCK_CHUNKS], tl.float32)
    let_next_start(OVERLAP)
    wait_for_inputs(OVERLAP)
    for first in tl.static_range(0, CHUNKS, BLOCK_CHUNKS):
        chunks = first + tl.arange(0, BLOCK_CHUNKS)
        at = chunks[None, :, None] * 16 + inner[None, None, :]
        if first + BLOCK_CHUNKS <= CHUNKS:
            w = tl.load(rows + at, mask=is_n[:, None, None], other=0.0)
            x = tl.load(x_ptr + at).to(tl.float32)
        else:
            is_chunk = (chunks < CHUNKS)[None, :, None]
            w = tl.load(rows + at, mask=is_n[:, None, None] & is_chunk, other=0.0)
            x = tl.load(x_ptr + at, mask=is_chunk, other=0.0).to(tl.float32)
        acc += tl.sum(w.to(tl.float32) * x, axis=2)
    y = tl.sum(acc, axis=1) * tl.load(scales_ptr + n, mask=is_n, other=0.0)
    if HAS_BIAS:
        y += tl.load(bias_ptr + n, mask=is_n, other=0.0).to(tl.float32)
    tl.store(y_ptr + n, y.to(y_ptr.dtype.element_ty), mask=is_n)


@triton.jit
def _add_group(
    acc, x_columns, w_rows, scales_ptr, zeros_ptr, n, is_n, is_m, first, K: tl.constexpr,
    GROUP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One group of four-bit weights, exact in any type before its scale; a group past K is none."""
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


@triton.jit(do_not_specialize=["num_rows"])
def quantized_skinny_kernel(
    x_ptr,
    w_ptr,
    scales_ptr,
    zeros_ptr,
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
    IS_INT4: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Grid: blocks of output features, splits of K, blocks of rows.

    As `skinny_linear.skinny_kernel`. With four bits BLOCK_K is GROUP.
    """
    tile = tl.program_id(0)
    split = tl.program_id(1)
    block = tl.program_id(2)
    n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    m = block * BLOCK_M + tl.arange(0, BLOCK_M)
    is_n = n < out_features
    is_m = m < num_rows
    STEPS: tl.constexpr = (K + BLOCK_K * SPLITS - 1) // (BLOCK_K * SPLITS)
    ROW_BYTES: tl.constexpr = K // 2 if IS_INT4 else K
    w_rows = w_ptr + n.to(tl.int64)[:, None] * ROW_BYTES
    x_columns = x_ptr + m[None, :].to(tl.int64) * x_stride
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    let_next_start(OVERLAP)
    wait_for_inputs(OVERLAP)
    for step in range(STEPS):
        first = (split * STEPS + step) * BLOCK_K
        if IS_INT4:
            acc = _add_group(
                acc, x_columns, w_rows, scales_ptr, zeros_ptr, n, is_n, is_m, first, K, GROUP,
                PRECISION,
            )  # fmt: skip
        else:
            k = first + tl.arange(0, BLOCK_K)
            is_w = is_n[:, None] & (k < K)[None, :]
            is_x = is_m[None, :] & (k < K)[:, None]
            w = tl.load(w_rows + k[None, :], mask=is_w, other=0.0)
            x = tl.load(x_columns + k[:, None], mask=is_x, other=0.0)
            acc = tl.dot(w.to(x.dtype), x, acc, input_precision=PRECISION)
    if SPLITS > 1:
        at = block * tl.num_programs(0) + tile
        inner = tl.arange(0, BLOCK_N)[:, None] * BLOCK_M + tl.arange(0, BLOCK_M)[None, :]
        parts = partial_ptr + at * SPLITS * BLOCK_N * BLOCK_M + inner
        tl.store(parts + split * BLOCK_N * BLOCK_M, acc)
        tl.debug_barrier()  # all of the program's stores come before its arrival
        arrived = tl.atomic_add(arrivals_ptr + at, 1, sem="acq_rel", scope="gpu")
        if arrived < SPLITS - 1:
            return
        tl.debug_barrier()
        tl.store(arrivals_ptr + at, 0)
        acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        for other in tl.static_range(SPLITS):
            acc += tl.load(parts + other * BLOCK_N * BLOCK_M, cache_modifier=".cg")
    if not IS_INT4:
        acc *= tl.load(scales_ptr + n, mask=is_n, other=0.0)[:, None]
    if HAS_BIAS:
        acc += tl.load(bias_ptr + n, mask=is_n, other=0.0).to(tl.float32)[:, None]
    target = y_ptr + m[None, :].to(tl.int64) * out_features + n[:, None]
    tl.store(target, acc.to(y_ptr.dtype.element_ty), mask=is_n[:, None] & is_m[None, :])


@triton.jit
def dequantize_kernel(
    w_ptr,
    scales_ptr,
    zeros_ptr,
    out_ptr,
    K: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_INT4: tl.constexpr,
):
    """Plain weights `[N, K]`; grid: output features, blocks of bytes."""
    n = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    ROW_BYTES: tl.constexpr = K // 2 if IS_INT4 else K
    is_inside = at < ROW_BYTES
    element = out_ptr.dtype.element_ty
    if IS_INT4:
        w = tl.load(w_ptr + n * ROW_BYTES + at, mask=is_inside, other=0)
        k = at // 16 * 32 + at % 16
        group = n * (K // GROUP) + k // GROUP
        scale = tl.load(scales_ptr + group, mask=is_inside, other=0.0)
        zero = tl.load(zeros_ptr + group, mask=is_inside, other=0).to(tl.float32)
        low = ((w & 15).to(tl.float32) - zero) * scale
        high = ((w >> 4).to(tl.float32) - zero) * scale
        tl.store(out_ptr + n * K + k, low.to(element), mask=is_inside)
        tl.store(out_ptr + n * K + k + 16, high.to(element), mask=is_inside)
    else:
        w = tl.load(w_ptr + n * ROW_BYTES + at, mask=is_inside, other=0.0).to(tl.float32)
        tl.store(out_ptr + n * K + at, (w * tl.load(scales_ptr + n)).to(element), mask=is_inside)
