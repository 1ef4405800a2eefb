"""Which steps are recorded: those in which every request decodes, and small mixtures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from chiplet.api import GREEDY, Sampling, ShapeBucket, StepLimits

_SIZES = (1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64)
_STEP = 16
_LARGE_SIZES = (320, 384, 512)
"""Requests: close together where weights are read for few rows, evenly spaced up to 256. Above,
sizes at which products are fast: with 448 rows cuBLAS takes nearly twice as long as with 512."""

_MIXED_TOKENS = (32, 64, 128, 192, 256, 384, 512)
_MIXED_REQUESTS = 64
"""Mixtures of prompts and decodes. A larger one keeps the device busy for longer than its launches
keep the host, so that recording it gains nothing."""

_MIXED_DECODES = ((256, 16, 64), (256, 48, 96), (256, 96, 144), (384, 128, 208), (384, 192, 256))
"""Tokens, decodes and requests of further mixtures, whose decodes share out their keys: those to
which the scheduler fills up steps for few prompt tokens."""

_TOKENS = (2048, 16384)
"""Longest context of a bucket; more than these take the longest of all. A bucket's page table is
sent with each step, and its splits of attention are made for its length."""

_SAMPLING = (GREEDY, Sampling.DRAW | Sampling.FILTERS)
"""What else a step may want (penalties, bias, log-probabilities) runs operation by operation."""


def recorded_buckets(limits: StepLimits) -> list[ShapeBucket]:
    """Buckets in the order in which they are worth having: short greedy contexts first."""
    shortest, *longer = _widths(limits)
    return [
        *_decodes(limits, shortest, GREEDY),
        *(each for sampling in _SAMPLING for each in _mixtures(limits, shortest, sampling)),
        *(each for sampling in _SAMPLING[1:] for each in _decodes(limits, shortest, sampling)),
        *(
            each
            for width in longer
            for sampling in _SAMPLING
            for each in _decodes(limits, width, sampling)
        ),
    ]


def sizes(largest: int) -> list[int]:
    """Numbers of decoding requests up to the largest."""
    evenly = range(_SIZES[-1] + _STEP, 256 + _STEP, _STEP)
    beyond = range(512 + 128, largest + 128, 128)
    found = (*_SIZES, *evenly, *_LARGE_SIZES, *beyond)
    return sorted({min(size, largest) for size in found})


def _decodes(limits: StepLimits, max_pages: int, sampling: Sampling) -> Iterator[ShapeBucket]:
    for size in sizes(limits.max_requests):
        yield ShapeBucket(
            num_tokens=size,
            num_requests=size,
            num_decodes=size,
            max_pages=max_pages,
            sampling=sampling,
        )


def _mixtures(limits: StepLimits, max_pages: int, sampling: Sampling) -> Iterator[ShapeBucket]:
    for num_tokens in sorted({min(size, limits.max_tokens) for size in _MIXED_TOKENS}):
        yield ShapeBucket(
            num_tokens=num_tokens,
            num_requests=min(_MIXED_REQUESTS, num_tokens, limits.max_requests),
            num_decodes=0,
            max_pages=max_pages,
            sampling=sampling,
        )
    for num_tokens, num_decodes, num_requests in _MIXED_DECODES:
        if num_tokens <= limits.max_tokens and num_decodes < limits.max_requests:
            yield ShapeBucket(
                num_tokens=num_tokens,
                num_requests=min(num_requests, limits.max_requests),
                num_decodes=num_decodes,
                max_pages=max_pages,
                sampling=sampling,
            )


def _widths(limits: StepLimits) -> Sequence[int]:
    """Columns of page tables."""
    widths = {-(-num_tokens // limits.page_size) for num_tokens in _TOKENS}
    return sorted({min(width, limits.max_pages) for width in (*widths, limits.max_pages)})
