"""Where a cache keeps keys and values and as what numbers, and scores as a softcap bounds them.

Pages are `[num_pages, 2, PAGE_SIZE, NUM_KV_HEADS, HEAD_DIM]`. Those of codes in int8 are bytes in
the same order, where behind the keys, and behind the values, of each page come their scales,
`[PAGE_SIZE, NUM_KV_HEADS]` of float32.
"""

import triton
import triton.language as tl


@triton.jit
def _e4m3(x):
    """`chiplet.api.KvCoding.FP8`, in integers: devices differ in what is beyond 448."""
    bits = x.to(tl.int32, bitcast=True)
    size = tl.minimum(tl.abs(x), 448.0)
    size_bits = size.to(tl.int32, bitcast=True)
    # Three bits of the mantissa stay of 23, and the exponent counts from -7 instead of -127.
    normal = ((size_bits + 0x7FFFF + ((size_bits >> 20) & 1)) >> 20) - (120 << 3)
    # Below 2^-6, multiples of 2^-9: the last place of 2^14.
    small = (size + 16384.0).to(tl.int32, bitcast=True) - 0x46800000
    code = tl.where(size < 0.015625, small, normal) | ((bits >> 24) & 0x80)
    return code.to(tl.uint8).to(tl.float8e4nv, bitcast=True)


@triton.jit
def to_cache(x, ELEMENT: tl.constexpr):
    """Rounded to the cache's type."""
    return _e4m3(x.to(tl.float32)) if tl.float8e4nv == ELEMENT else x.to(ELEMENT)


@triton.jit
def int8_codes(x):
    """Rows as `chiplet.api.KvCoding.INT8` has them: codes, and scales.

    Shapes: x `[rows, dims]` float32, 0 where there is nothing.
    """
    largest = tl.max(tl.abs(x), axis=1)
    inverse = tl.where(
        largest >= 1.0e-30, tl.div_rn(tl.full(largest.shape, 127.0, tl.float32), largest), 0.0
    )
    # The smaller of two is no product, which a compiler would join with the sum that rounds it.
    scaled = tl.minimum(x * inverse[:, None], 127.0)
    rounded = (scaled + 12582912.0) - 12582912.0  # 1.5 * 2^23: steps of 1
    return rounded.to(tl.int8), tl.div_rn(largest, tl.full(largest.shape, 127.0, tl.float32))


@triton.jit
def half_of_pairs(pairs, SECOND: tl.constexpr, IS_INT8: tl.constexpr, IS_PACKED: tl.constexpr):
    """First or second codes of pairs of bytes, as float16; nothing is rounded.

    Packed, a register of two pairs takes two or three instructions, of which a compiler makes ten.
    """
    if IS_PACKED and IS_INT8:
        return tl.inline_asm_elementwise(
            f"""{{
            .reg .b32 bytes, middle;
            prmt.b32 bytes, $1, 0x64646464, {"0x4341" if SECOND else "0x4240"};
            xor.b32 bytes, bytes, 0x00800080;
            mov.b32 middle, 0x64806480;
            sub.f16x2 $0, bytes, middle;
            }}""",
            "=r,r",
            [pairs],
            dtype=tl.float16,
            is_pure=True,
            pack=2,
        )
    if IS_PACKED:
        return tl.inline_asm_elementwise(
            f"""{{
            .reg .b16 codes, rest;
            .reg .b32 bytes;
            prmt.b32 bytes, $1, 0, {"0x4431" if SECOND else "0x4420"};
            mov.b32 {{codes, rest}}, bytes;
            cvt.rn.f16x2.e4m3x2 $0, codes;
            }}""",
            "=r,r",
            [pairs],
            dtype=tl.float16,
            is_pure=True,
            pack=2,
        )
    byte = pairs >> 8 if SECOND else pairs & 255
    if IS_INT8:
        # 1,024 and a byte is a pattern of bits.
        return (byte ^ 0x6480).to(tl.float16, bitcast=True) - 1152.0
    # The exponent counts from -7 instead of -15.
    bits = ((byte & 128) << 8) | ((byte & 127) << 7)
    return bits.to(tl.float16, bitcast=True) * 256.0


@triton.jit
def row_offset(page, place, kv_head, PAGE_SIZE: tl.constexpr, NUM_KV_HEADS: tl.constexpr,
               HEAD_DIM: tl.constexpr, IS_INT8: tl.constexpr):  # fmt: skip
    """First element of the keys at a place of a page."""
    if IS_INT8:
        first = page * (2 * PAGE_SIZE * NUM_KV_HEADS * (HEAD_DIM + 4)) + place * (
            NUM_KV_HEADS * HEAD_DIM
        )
    else:
        first = (page * 2 * PAGE_SIZE + place) * (NUM_KV_HEADS * HEAD_DIM)
    return first + kv_head * HEAD_DIM


@triton.jit
def scale_offset(page, place, kv_head, PAGE_SIZE: tl.constexpr, NUM_KV_HEADS: tl.constexpr,
                 HEAD_DIM: tl.constexpr):  # fmt: skip
    """The scale of the keys at a place of a page, in numbers of 32 bits."""
    WORDS_OF_PAGE: tl.constexpr = PAGE_SIZE * NUM_KV_HEADS * (HEAD_DIM + 4) // 2
    WORDS_BEFORE: tl.constexpr = PAGE_SIZE * NUM_KV_HEADS * HEAD_DIM // 4
    return page * WORDS_OF_PAGE + WORDS_BEFORE + place * NUM_KV_HEADS + kv_head


@triton.jit
def bounded(scores, score_factor, HAS_SOFTCAP: tl.constexpr):
    """The hyperbolic tangent of the scores times a factor, or the scores."""
    return 2.0 * tl.sigmoid(2.0 * score_factor * scores) - 1.0 if HAS_SOFTCAP else scores
