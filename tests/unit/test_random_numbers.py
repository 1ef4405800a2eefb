from __future__ import annotations

import numpy as np

from chiplet.runner.random_numbers import uniforms


def _draw(seeds: np.ndarray, indices: np.ndarray) -> np.ndarray:
    return uniforms(seeds.astype(np.uint64), indices.astype(np.int32))


def test_a_number_depends_on_its_own_seed_and_index_only() -> None:
    seeds, indices = np.arange(100), np.arange(100) % 7
    together = _draw(seeds, indices)
    alone = [_draw(seeds[i : i + 1], indices[i : i + 1])[0] for i in range(100)]
    assert together.tolist() == alone


def test_numbers_are_even_and_neighbours_unrelated() -> None:
    for seeds, indices in (
        (np.zeros(100_000), np.arange(100_000)),
        (np.arange(100_000), np.zeros(100_000)),
    ):
        drawn = _draw(seeds, indices)
        assert drawn.min() >= 0.0
        assert drawn.max() < 1.0
        counts = np.histogram(drawn, bins=20, range=(0, 1))[0]
        # 5,000 expected per bin; six standard deviations are 413.
        assert abs(counts - 5000).max() < 413
        assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.02
