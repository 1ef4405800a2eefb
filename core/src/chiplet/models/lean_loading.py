"""Loading a model in little more memory than it keeps.

glibc raises the size from which it maps memory with every mapping that is freed, up to 32 MiB. Most
weights then come from its heap, where a checkpoint's tensor, once packed and freed, leaves a hole
among weights that stay: 40 MB for 540 MB of weights, in one run, 116 MB in another.
"""

from __future__ import annotations

import ctypes
import linecache
from collections.abc import Generator
from contextlib import contextmanager

from chiplet.models.code_pages import release_code

_OWN_MAPPING_BYTES = 1 << 16
"""Matrices of the smallest models are larger."""

_LARGEST_THRESHOLD_BYTES = 32 << 20
"""glibc's own limit on 64-bit machines, and the state that loading a model leads to without us."""

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


@contextmanager
def lean_loading() -> Generator[None]:
    """Tensors made meanwhile give their memory back when they are freed; small ones excepted.

    So does, before and after, what only went before needed: code of libraries, lines of sources
    that were looked at, and afterwards whatever is free in the heap.

    Mutates: the C library's settings. Afterwards they are those of a program that has freed large
    tensors, so that the activations of a step are not mapped anew each time. Other C libraries than
    glibc are left alone.
    """
    release_code()
    library = ctypes.CDLL(None)
    mallopt, trim = getattr(library, "mallopt", None), getattr(library, "malloc_trim", None)
    if mallopt is None or trim is None:
        yield
        return
    mallopt(_M_MMAP_THRESHOLD, _OWN_MAPPING_BYTES)
    try:
        yield
    finally:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_THRESHOLD_BYTES)
        mallopt(_M_TRIM_THRESHOLD, 2 * _LARGEST_THRESHOLD_BYTES)
        linecache.clearcache()
        trim(0)
        release_code()
