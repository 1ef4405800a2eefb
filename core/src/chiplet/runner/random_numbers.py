"""Random numbers that depend on a request's seed and the place in its answer, and nothing else."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from chiplet.step import Float32s, Int32s

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniforms(seeds: NDArray[np.uint64], indices: Int32s) -> Float32s:
    """One number in [0, 1) per row, `[n] float32`.

    Shapes: seeds `[n] uint64`; indices `[n] int32`, index of the token in its answer.
    Source: SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), its mixer applied to the seed and
    again to the seed advanced by index.
    """
    with np.errstate(over="ignore"):
        state = _mix(seeds + _GOLDEN) + (indices.astype(np.uint64) + np.uint64(1)) * _GOLDEN
        bits = _mix(state) >> np.uint64(40)
    # 24 bits are all that float32 holds below 1.
    return bits.astype(np.float32) * np.float32(2.0**-24)


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
