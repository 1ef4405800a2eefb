"""Schemes with which linear providers are tried."""

from __future__ import annotations

from chiplet.api import Activations, Coding, Granularity, WeightScheme

_GROUP, _CHANNEL = Granularity.GROUP, Granularity.CHANNEL

WEIGHT_SCHEMES: tuple[WeightScheme, ...] = (
    WeightScheme(coding=Coding.INT8, granularity=_CHANNEL),
    WeightScheme(coding=Coding.INT8, granularity=_CHANNEL, activations=Activations.PER_TOKEN),
    WeightScheme(coding=Coding.INT8, granularity=_CHANNEL, activations=Activations.STATIC),
    WeightScheme(coding=Coding.INT8, granularity=_GROUP, group_size=64, has_zero_points=True),
    WeightScheme(coding=Coding.INT4, granularity=_CHANNEL),
    *(
        WeightScheme(
            coding=Coding.INT4, granularity=_GROUP, group_size=size, has_zero_points=has_zeros
        )
        for size in (32, 64, 128)
        for has_zeros in (False, True)
    ),
    WeightScheme(coding=Coding.FP8_E4M3, granularity=Granularity.TENSOR),
    WeightScheme(
        coding=Coding.FP8_E4M3, granularity=Granularity.TENSOR, activations=Activations.STATIC
    ),
    WeightScheme(coding=Coding.FP8_E4M3, granularity=_CHANNEL),
    WeightScheme(coding=Coding.FP8_E4M3, granularity=_CHANNEL, activations=Activations.PER_TOKEN),
    WeightScheme(
        coding=Coding.FP8_E4M3,
        granularity=Granularity.BLOCK,
        group_size=128,
        activations=Activations.PER_TOKEN_GROUP,
    ),
    WeightScheme(coding=Coding.MXFP4, granularity=_GROUP, group_size=32),
    WeightScheme(coding=Coding.NVFP4, granularity=_GROUP, group_size=16),
    *(
        WeightScheme(coding=coding, granularity=Granularity.PACKED)
        for coding in Coding
        if coding.block is not None
    ),
)
"""One of each kind that some checkpoint has; 256 input features suit them all."""
