"""Which shapes of steps are compiled.

A program's cost depends on its tokens, hardly on the width of its page table: kernels read the
pages that a request has. On a chip there is thus one width. The processor that stands in for a chip
gathers all pages that the table could name, and compiles slowly: there widths grow by fours, and
sizes too.
"""

from __future__ import annotations

from chiplet.api import ALL_SAMPLING, GREEDY, Sampling, ShapeBucket, StepLimits

_COMMON = Sampling.DRAW | Sampling.FILTERS

_SMALLEST_DECODE = 8
"""Rows of a vector register."""

_SMALLEST_MIXED = 64
_SMALLEST_PAGES = 16


def choose_buckets(limits: StepLimits, *, is_emulated: bool) -> tuple[ShapeBucket, ...]:
    """Buckets for every step, those first that greedy and common requests wait for."""
    factor = 4 if is_emulated else 2
    widths = _sizes(_SMALLEST_PAGES, limits.max_pages, 4) if is_emulated else (limits.max_pages,)
    decodes = _sizes(_SMALLEST_DECODE, limits.max_requests, factor)
    mixed = _sizes(_SMALLEST_MIXED, limits.max_tokens, factor)
    samplings = (GREEDY, ALL_SAMPLING) if is_emulated else (GREEDY, _COMMON, ALL_SAMPLING)
    buckets: list[ShapeBucket] = []
    for sampling in samplings:
        for max_pages in widths:
            buckets += [_mixed(limits, size, max_pages, sampling) for size in mixed]
            buckets += [_decode(size, max_pages, sampling) for size in decodes]
    return tuple(buckets)


def _decode(size: int, max_pages: int, sampling: Sampling) -> ShapeBucket:
    return ShapeBucket(
        num_tokens=size,
        num_requests=size,
        num_decodes=size,
        max_pages=max_pages,
        sampling=sampling,
    )


def _mixed(limits: StepLimits, size: int, max_pages: int, sampling: Sampling) -> ShapeBucket:
    return ShapeBucket(
        num_tokens=size,
        num_requests=min(size, limits.max_requests),
        num_decodes=0,
        max_pages=max_pages,
        num_prompt_rows=min(size, limits.max_prompt_rows) if sampling == ALL_SAMPLING else 0,
        sampling=sampling,
    )


def _sizes(smallest: int, largest: int, factor: int) -> tuple[int, ...]:
    """`smallest`, `factor` times that and so on below `largest`, and `largest`."""
    sizes: list[int] = []
    while smallest < largest:
        sizes.append(smallest)
        smallest *= factor
    return (*sizes, largest)
