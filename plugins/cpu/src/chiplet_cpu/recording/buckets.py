"""Shapes of steps that are recorded."""

from __future__ import annotations

from chiplet.api import ALL_SAMPLING, GREEDY, Sampling, ShapeBucket, StepLimits

_STEPS_PER_OCTAVE = 8
"""Batch sizes between a power of two and the next: at most an eighth of a step is padding."""

_FEW_PAGES = 64
"""Columns of the smallest page table; larger ones have eight times as many, and so on."""

_SAMPLING = (GREEDY, Sampling.DRAW | Sampling.FILTERS, ALL_SAMPLING)


def decode_buckets(limits: StepLimits) -> tuple[ShapeBucket, ...]:
    """Steps in which every request has one token, those that most need it first."""
    return tuple(
        ShapeBucket(
            num_tokens=num_requests,
            num_requests=num_requests,
            num_decodes=num_requests,
            max_pages=max_pages,
            sampling=sampling,
        )
        for sampling in _SAMPLING
        for max_pages in _page_counts(limits.max_pages)
        for num_requests in _batch_sizes(min(limits.max_requests, limits.max_tokens))
    )


def _batch_sizes(largest: int) -> tuple[int, ...]:
    sizes: list[int] = []
    size = 1
    while size < largest:
        sizes.append(size)
        size += max(1, (1 << size.bit_length() - 1) // _STEPS_PER_OCTAVE)
    return (*sizes, largest)


def _page_counts(largest: int) -> tuple[int, ...]:
    counts: list[int] = []
    count = _FEW_PAGES
    while count < largest:
        counts.append(count)
        count *= 8
    return (*counts, largest)
