"""Root-mean-square norm, with or without a residual sum."""

import triton
import triton.language as tl

from chiplet_triton.kernels.overlap import let_next_start, wait_for_inputs


@triton.jit
def rms_norm_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    out_ptr,
    total_ptr,
    hidden,
    x_stride,
    residual_stride,
    eps,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """One program a row. The residual sum is rounded to its type before it is normed."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    is_inside = columns < hidden
    weight = tl.load(weight_ptr + columns, mask=is_inside, other=0.0)
    let_next_start(OVERLAP)
    wait_for_inputs(OVERLAP)
    x = tl.load(x_ptr + row * x_stride + columns, mask=is_inside, other=0.0)
    if HAS_RESIDUAL:
        residual = tl.load(
            residual_ptr + row * residual_stride + columns, mask=is_inside, other=0.0
        )
        x = (x.to(tl.float32) + residual.to(tl.float32)).to(total_ptr.dtype.element_ty)
        tl.store(total_ptr + row * hidden + columns, x, mask=is_inside)
    wide = x.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(wide * wide, axis=0) / hidden + eps)
    out = wide * inverse * weight.to(tl.float32)
    tl.store(out_ptr + row * hidden + columns, out.to(out_ptr.dtype.element_ty), mask=is_inside)
