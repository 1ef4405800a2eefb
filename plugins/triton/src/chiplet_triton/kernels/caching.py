"""Numbers as a cache keeps them, and scores as a softcap bounds them."""

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
def bounded(scores, score_factor, HAS_SOFTCAP: tl.constexpr):
    """The hyperbolic tangent of the scores times a factor, or the scores."""
    return 2.0 * tl.sigmoid(2.0 * score_factor * scores) - 1.0 if HAS_SOFTCAP else scores
