"""What kernels of linear layers share: the outputs of a program, splits of K, and the end.

A gate and what it is for are the halves of a weight. A tile of a gated product takes a row of each
in turn, so that one program has both.
"""

import triton
import triton.language as tl


@triton.jit
def tile_rows(tile, out_features, BLOCK_N: tl.constexpr, IS_GATED: tl.constexpr):
    """A tile's rows of the weight, `[BLOCK_N]`, and which of them there are."""
    n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    is_n = n < out_features
    if IS_GATED:
        n = n // 2 + n % 2 * (out_features // 2)
    return n, is_n


@triton.jit
def add_splits(acc, partial_ptr, arrivals_ptr, at, split, SPLITS: tl.constexpr):
    """The sum over all splits of a tile, for the program that arrives last; whether it is that.

    It adds them up in their order: the result does not depend on who it is. `arrivals` holds zeros
    before and after.
    """
    SIZE: tl.constexpr = acc.shape[0] * acc.shape[1]
    inner = tl.arange(0, acc.shape[0])[:, None] * acc.shape[1] + tl.arange(0, acc.shape[1])[None, :]
    parts = partial_ptr + at * SPLITS * SIZE + inner
    tl.store(parts + split * SIZE, acc)
    tl.debug_barrier()  # all of the program's stores come before its arrival
    is_last = tl.atomic_add(arrivals_ptr + at, 1, sem="acq_rel", scope="gpu") == SPLITS - 1
    if is_last:
        tl.debug_barrier()
        tl.store(arrivals_ptr + at, 0)
        acc = tl.zeros_like(acc)
        for other in tl.static_range(SPLITS):
            acc += tl.load(parts + other * SIZE, cache_modifier=".cg")
    return acc, is_last


@triton.jit
def store_tile(
    acc, bias_ptr, y_ptr, tile, n, is_n, m, is_m, out_features,
    HAS_BIAS: tl.constexpr, IS_GATED: tl.constexpr,
):  # fmt: skip
    """Writes a tile, with its bias, and its gate if it has one.

    Shapes: acc `[BLOCK_N, BLOCK_M] float32`; n, is_n `[BLOCK_N]` and m, is_m `[BLOCK_M]`.
    """
    BLOCK_N: tl.constexpr = acc.shape[0]
    if HAS_BIAS:
        acc += tl.load(bias_ptr + n, mask=is_n, other=0.0).to(tl.float32)[:, None]
    m = m.to(tl.int64)[None, :]
    if IS_GATED:
        pairs = tl.permute(tl.reshape(acc, [BLOCK_N // 2, 2, acc.shape[1]]), [0, 2, 1])
        gate, up = tl.split(pairs)
        width = out_features // 2
        place = tile * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
        out = gate / (1.0 + tl.exp(-gate)) * up
        at = y_ptr + m * width + place[:, None]
        tl.store(at, out.to(y_ptr.dtype.element_ty), mask=(place < width)[:, None] & is_m[None, :])
    else:
        at = y_ptr + m * out_features + n[:, None]
        tl.store(at, acc.to(y_ptr.dtype.element_ty), mask=is_n[:, None] & is_m[None, :])
