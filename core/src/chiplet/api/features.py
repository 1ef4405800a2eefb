"""Features that a request may need and a provider must have heard of.

A provider lists what it accepts. Core refuses, before it asks, whenever a request needs a feature
that is not in the list: a feature born tomorrow is refused by every plugin of today.
"""

from __future__ import annotations

from enum import StrEnum


class Feature(StrEnum):
    """Something beyond the plain case of an operation."""

    SLIDING_WINDOW = "sliding_window"
    """Attention: a token sees the last `window` tokens only."""
    MIXED_KV_DTYPE = "mixed_kv_dtype"
    """Attention: keys and values are cached in another type than the queries have."""
    BIAS = "bias"
    """Linear: a bias is added."""
    CAPTURED_COLLECTIVES = "captured_collectives"
    """Communication: collectives are recorded in device graphs and replayed."""
    ONE_PROGRAM = "one_program"
    """Communication: all ranks live in one process, whose program holds the collectives."""
