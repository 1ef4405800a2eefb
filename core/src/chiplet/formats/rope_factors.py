"""The rope_freqs tensor of Llama 3 GGUF files, turned back into the parameters behind it.

A GGUF file does not say that frequencies are scaled the Llama 3 way: it carries the factor by
which each frequency is divided. The same parameters from either format make the same model.

Source: rope scaling of Llama 3.1, as in config.json of meta-llama/Llama-3.1-8B.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from chiplet.config import RopeScaling

Factors = NDArray[np.float64]

_PUBLISHED = RopeScaling(
    kind="llama3", low_freq_factor=1.0, high_freq_factor=4.0, original_context_length=8192
)
_TOLERANCE = 1e-4


def llama3_factors(scaling: RopeScaling, rope_theta: float, head_dim: int) -> Factors:
    """What each rotary frequency is divided by, `[head_dim // 2] float64`."""
    turns = _turns_per_token(rope_theta, head_dim) * scaling.original_context_length
    span = scaling.high_freq_factor - scaling.low_freq_factor
    smooth = np.clip((turns - scaling.low_freq_factor) / span, 0.0, 1.0)
    return 1.0 / ((1.0 - smooth) / scaling.factor + smooth)


def find_llama3_scaling(factors: Factors, rope_theta: float, head_dim: int) -> RopeScaling | None:
    """The Llama 3 parameters that give these factors; None if there are none.

    Shapes: `factors` is `[head_dim // 2]`.
    """
    if factors.shape != (head_dim // 2,) or not np.isfinite(factors).all() or factors.min() < 1:
        return None
    if np.allclose(factors, 1.0):
        return RopeScaling()
    factor = round(float(factors.max()), 4)
    candidates = [
        replace(_PUBLISHED, factor=factor),
        _fit(factors, factor, rope_theta, head_dim),
    ]
    for candidate in candidates:
        if candidate is None:
            continue
        expected = llama3_factors(candidate, rope_theta, head_dim)
        if np.allclose(factors, expected, rtol=_TOLERANCE, atol=0.0):
            return candidate
    return None


def _turns_per_token(rope_theta: float, head_dim: int) -> Factors:
    """Full turns of each frequency per token, `[head_dim // 2]`."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
    return rope_theta**-exponents / (2.0 * np.pi)


def _fit(factors: Factors, factor: float, rope_theta: float, head_dim: int) -> RopeScaling | None:
    """Parameters through the factors between 1 and the largest.

    Between the ends, `smooth` grows linearly with turns per token: its slope is
    `original / (high - low)` and its zero `-low / (high - low)`. Only these two ratios matter,
    so `low` may be called 1.
    """
    is_between = (factors > 1.0 + _TOLERANCE) & (factors < factor * (1.0 - _TOLERANCE))
    if is_between.sum() < 2:
        return None
    smooth = (1.0 / factors[is_between] - 1.0 / factor) / (1.0 - 1.0 / factor)
    turns = _turns_per_token(rope_theta, head_dim)[is_between]
    slope, intercept = np.polyfit(turns, smooth, 1)
    if slope <= 0 or intercept >= 0:
        return None
    return RopeScaling(
        kind="llama3",
        factor=factor,
        low_freq_factor=1.0,
        high_freq_factor=round(float(1.0 - 1.0 / intercept), 3),
        original_context_length=round(float(-slope / intercept)),
    )
