"""Workload: random prompts of exact lengths, and settings that make answers of exact lengths."""

from __future__ import annotations

import random

from chiplet.sampling_params import SamplingParams

FIRST_ORDINARY_TOKEN = 1000
LAST_ORDINARY_TOKEN = 9000
"""Random ids are taken from this range: every usual vocabulary has it, and no special token is in
it (those stand at either end)."""


def random_prompts(
    num_prompts: int, num_tokens: int, *, seed: int, vocab_size: int | None = None
) -> list[list[int]]:
    """Prompts of random tokens, different from one another; the same for the same seed."""
    first, last = FIRST_ORDINARY_TOKEN, LAST_ORDINARY_TOKEN
    if vocab_size is not None and vocab_size < last:
        first, last = 0, vocab_size
    source = random.Random(seed)
    return [source.choices(range(first, last), k=num_tokens) for _ in range(num_prompts)]


def exact_length(num_tokens: int) -> SamplingParams:
    """Greedy answers of exactly this many tokens."""
    return SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
