"""Programmatic dependent launch: a kernel's prologue runs while its predecessor ends."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def wait_for_inputs(OVERLAP: tl.constexpr):
    """Wait until everything that earlier kernels wrote can be read."""
    if OVERLAP:
        gdc_wait()


@triton.jit
def let_next_start(OVERLAP: tl.constexpr):
    """Allow the next kernel to begin its prologue."""
    if OVERLAP:
        gdc_launch_dependents()
