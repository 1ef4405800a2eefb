"""Large tensors in mappings of their own while a model loads.

glibc raises the size from which it maps memory with every mapping that is freed, up to 32 MiB. Most
weights then come from its heap, where a checkpoint's tensor, once packed and freed, leaves a hole
among weights that stay: 40 MB for 540 MB of weights, in one run, 116 MB in another.
"""

from __future__ import annotations

import ctypes
from collections.abc import Generator
from contextlib import contextmanager

_OWN_MAPPING_BYTES = 1 << 20
_LARGEST_THRESHOLD_BYTES = 32 << 20
"""glibc's own limit on 64-bit machines, and the state that loading a model leads to without us."""

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


@contextmanager
def large_tensors_in_own_mappings() -> Generator[None]:
    """Tensors of 1 MiB or more made meanwhile give their memory back when they are freed.

    Mutates: the C library's settings. Afterwards they are those of a program that has freed large
    tensors, so that the activations of a step are not mapped anew each time; and what is free in
    the heap, 20 MB of a start, is given back. Other C libraries than glibc are left alone.
    """
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
        trim(0)
