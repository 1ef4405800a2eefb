"""Many decodes with prefixes in common: in groups of any size, in groups of groups, and alone."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from chiplet.testing.conformance.attention_inputs import AttentionCase

_GROUP_SIZES = (1, 2, 3, 5, 9, 19)
_MOST_PAGES_TOKENS = 320


@lru_cache(maxsize=16)
def prefix_cases(page_size: int) -> tuple[AttentionCase, ...]:
    """Batches for pages of a size."""
    return (
        _everyone(page_size),
        *(drawn_prefixes(page_size, seed, num_decodes=27 + 8 * seed) for seed in range(3)),
    )


def _everyone(page_size: int) -> AttentionCase:
    """All share what they can, and none has the same length."""
    least = -(-192 // page_size)
    lengths = tuple(least * page_size + 1 + each for each in range(25))
    prefixes = ((0, 0),) + ((0, least),) * 24
    return AttentionCase("one prefix for all", (1,) * 25, lengths, prefixes=prefixes)


def drawn_prefixes(page_size: int, seed: int, *, num_decodes: int) -> AttentionCase:
    """Groups in a random order among a chunk and decodes of their own.

    Members of a group share pages with one of those before, often as many as both have that are
    full of tokens before their new one.
    """
    random = np.random.default_rng(seed)
    most_pages = -(-_MOST_PAGES_TOKENS // page_size)
    lengths: list[int] = []
    groups: list[int] = []
    while len(lengths) < num_decodes:
        pages = int(random.integers(0, most_pages))
        for _ in range(int(random.choice(_GROUP_SIZES))):
            rest = int(random.choice((1, page_size, int(random.integers(1, 3 * page_size + 1)))))
            lengths.append(pages * page_size + rest)
            groups.append(pages)
    order = random.permutation(len(lengths))[:num_decodes]
    lengths, groups = [lengths[at] for at in order], [groups[at] for at in order]
    prefixes: list[tuple[int, int]] = []
    for index, (length, group) in enumerate(zip(lengths, groups, strict=True)):
        earlier = [at for at in range(index) if groups[at] == group]
        if not earlier:
            prefixes.append((index, 0))
            continue
        other = int(random.choice(earlier))
        full = (min(length, lengths[other]) - 1) // page_size
        prefixes.append(
            (other, int(random.choice((full, full, int(random.integers(0, full + 1))))))
        )
    return AttentionCase(
        f"drawn prefixes {seed}",
        (*(1,) * num_decodes, 9),
        (*lengths, 30),
        seed=seed,
        prefixes=(*prefixes, (num_decodes, 0)),
    )
