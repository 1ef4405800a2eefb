"""SchedulerStats: what the scheduler counts, as a value."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerStats:
    """Counts at one moment; those that start with `total_` only grow.

    Attributes:
        num_running: requests with a slot that have not ended.
        num_waiting: requests without a slot.
        num_total_pages: pages of the KV cache.
        num_free_pages: pages that hold nothing.
        num_cached_pages: pages that no running request needs, kept for others until room is short.
        page_size: tokens in a page.
        total_steps: steps planned.
        total_prompt_tokens: prompt tokens of admitted requests, each request once.
        total_cached_tokens: those of them that were already in the cache.
        total_computed_prompt_tokens: tokens computed in prefill, after a retraction again.
        total_output_tokens: tokens in answers.
        total_retractions: times that a running request had to make room.
        total_evicted_pages: cached pages given up for others.
        total_finished: requests that ended, for whatever reason.
        total_aborted: those of them that were aborted.
    """

    num_running: int
    num_waiting: int
    num_total_pages: int
    num_free_pages: int
    num_cached_pages: int
    page_size: int
    total_steps: int
    total_prompt_tokens: int
    total_cached_tokens: int
    total_computed_prompt_tokens: int
    total_output_tokens: int
    total_retractions: int
    total_evicted_pages: int
    total_finished: int
    total_aborted: int


@dataclass(slots=True)
class Totals:
    """The growing counts of `SchedulerStats`; the Scheduler changes them."""

    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    computed_prompt_tokens: int = 0
    output_tokens: int = 0
    retractions: int = 0
    finished: int = 0
    aborted: int = 0
