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
    INT8_KV = "int8_kv"
    """Attention: keys and values are cached in int8, with a scale for each token and head."""
    FP8_KV = "fp8_kv"
    """Attention: keys and values are cached in fp8 (E4M3)."""
    SOFTCAP = "softcap"
    """Attention: scores are bounded smoothly before softmax."""
    SINKS = "sinks"
    """Attention: each head has a score that takes weight and adds no value."""
    LATENT_KV = "latent_kv"
    """Attention: values are the first elements of their keys, and are not cached."""
    TREE_MASK = "tree_mask"
    """Attention: new tokens of a request may be branches, which do not see one another."""
    CAPTURE = "capture"
    """Attention: the tokens with most weight are given, if someone asks."""
    BIAS = "bias"
    """Linear: a bias is added."""
    INT8_WEIGHTS = "int8_weights"
    """Linear: weights are coded in int8."""
    INT4_WEIGHTS = "int4_weights"
    """Linear: weights are coded in int4."""
    FP8_WEIGHTS = "fp8_weights"
    """Linear: weights are coded in fp8 (E4M3)."""
    MXFP4_WEIGHTS = "mxfp4_weights"
    """Linear: weights are coded in MXFP4."""
    NVFP4_WEIGHTS = "nvfp4_weights"
    """Linear: weights are coded in NVFP4."""
    BLOCK_WEIGHTS = "block_weights"
    """Linear: weights are coded in one of GGUF's blocks."""
    ZERO_POINTS = "zero_points"
    """Linear: scales of the weights have zero points beside them."""
    DYNAMIC_ACTIVATIONS = "dynamic_activations"
    """Linear: the input is quantized with scales found in each step."""
    STATIC_ACTIVATIONS = "static_activations"
    """Linear: the input is quantized with a scale that the checkpoint gives."""
    WEIGHT_ROWS = "weight_rows"
    """Linear: rows of the packed weight are read too, as an embedding tied to it does."""
    CAPTURED_COLLECTIVES = "captured_collectives"
    """Communication: collectives are recorded in device graphs and replayed."""
    ONE_PROGRAM = "one_program"
    """Communication: all ranks live in one process, whose program holds the collectives."""
