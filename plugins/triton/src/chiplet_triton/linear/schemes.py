"""Which schemes of quantized weights are served, and what is made of their tensors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from chiplet.api import (
    Activations,
    Coding,
    Feature,
    Granularity,
    LinearWeights,
    WeightScheme,
)
from chiplet_triton.device import DeviceTraits

QUANTIZED_FEATURES = frozenset(
    {
        Feature.INT8_WEIGHTS,
        Feature.INT4_WEIGHTS,
        Feature.FP8_WEIGHTS,
        Feature.MXFP4_WEIGHTS,
        Feature.NVFP4_WEIGHTS,
        Feature.ZERO_POINTS,
        Feature.DYNAMIC_ACTIVATIONS,
        Feature.STATIC_ACTIVATIONS,
    }
)

BLOCK = 128
"""Outputs and inputs that share a scale of a block."""

_MAX_CODED_INPUTS = 65536  # a row is quantized by one program
_INT4_GROUPS = (32, 64, 128)
_SERVED = (
    "int8 per tensor and channel, fp8_e4m3 per tensor, channel and blocks of 128, int4 in groups "
    "of 32, 64 and 128, mxfp4, nvfp4"
)


class QuantizedWeights(NamedTuple):
    """Weights as the kernels read them.

    Attributes:
        weight: `[N, K]` int8 or float8_e4m3fn, or `[N, K / 2] uint8` in the order of the kernels.
        scales: `[N] float32`, of blocks `[ceil(N / 128), ceil(K / 128)] float32`, of four bits
            `[N, K / GROUP]`: float32 of int4, uint8 of fp4.
        beside: zero points `[N, K / GROUP] uint8` of int4, factors `[N] float32` of fp4, `[1]
            float32` of the scale of static activations; otherwise the scales again.
        bias: `[N]`.
    """

    weight: Tensor
    scales: Tensor
    beside: Tensor
    bias: Tensor | None


def coding_of(scheme: WeightScheme) -> str:
    """The kernels' word for how weights are coded."""
    kinds = {Coding.INT4: "int4", Coding.MXFP4: "fp4", Coding.NVFP4: "fp4"}
    return kinds.get(scheme.coding, "eight")


def refusal(scheme: WeightScheme, inputs: int, traits: DeviceTraits) -> str:
    """Why a scheme is not served for weights of a number of inputs, or an empty text."""
    if reason := _not_served(scheme):
        return reason
    if scheme.coding is Coding.FP8_E4M3 and not traits.has_fp8:
        return "this device has no numbers of the kind E4M3"
    unit = 32 if scheme.coding in (Coding.INT4, Coding.MXFP4, Coding.NVFP4) else 16
    if inputs % unit:
        return f"{inputs} inputs; served: multiples of {unit}"
    if scheme.activations is not Activations.KEPT and inputs > _MAX_CODED_INPUTS:
        return f"{inputs} inputs that are quantized; served: up to {_MAX_CODED_INPUTS}"
    return ""


def _not_served(scheme: WeightScheme) -> str:
    """Why nobody here serves the scheme, whatever the layer and the device."""
    size, activations = scheme.group_size, scheme.activations
    match scheme.coding, scheme.granularity:
        case Coding.INT4, Granularity.GROUP:
            if size not in _INT4_GROUPS:
                served = ", ".join(map(str, _INT4_GROUPS))
                return f"groups of {size}; served: {served}"
            allowed = {Activations.KEPT}
        case ((Coding.MXFP4 | Coding.NVFP4), _):
            allowed = {Activations.KEPT}
        case Coding.FP8_E4M3, Granularity.BLOCK:
            if size != BLOCK:
                return f"blocks of {size}; served: {BLOCK}"
            allowed = {Activations.KEPT, Activations.PER_TOKEN_GROUP}
        case ((Coding.INT8 | Coding.FP8_E4M3), (Granularity.TENSOR | Granularity.CHANNEL)):
            if scheme.has_zero_points:
                return f"{scheme}; served: {_SERVED}"
            allowed = {Activations.KEPT, Activations.PER_TOKEN, Activations.STATIC}
        case _:
            return f"{scheme}; served: {_SERVED}"
    served = ", ".join(sorted(allowed))
    return "" if activations in allowed else f"activations {activations}; served: {served}"


def packed(weights: LinearWeights) -> QuantizedWeights:
    """The tensors that the kernels read; of a scheme that is served."""
    scheme, scales = weights.scheme, weights.scales
    assert scheme is not None
    assert scales is not None
    match scheme.coding:
        case Coding.INT4:
            zeros = weights.zero_points
            if zeros is None:
                zeros = torch.full(scales.shape, 8, dtype=torch.uint8, device=scales.device)
            return QuantizedWeights(_by_chunks(weights.weight), scales, zeros, weights.bias)
        case Coding.MXFP4:
            codes, factors = _relative(scales)
        case Coding.NVFP4:
            assert weights.global_scales is not None
            codes, factors = scales.view(torch.uint8), weights.global_scales * 512.0
        case _:
            if scheme.granularity is Granularity.TENSOR:
                scales = scales.repeat(weights.weight.shape[0])
            beside = scales if weights.input_scale is None else weights.input_scale
            return QuantizedWeights(weights.weight, scales, beside, weights.bias)
    return QuantizedWeights(_by_chunks(weights.weight), codes, factors, weights.bias)


def _relative(exponents: Tensor) -> tuple[Tensor, Tensor]:
    """Scales E8M0 of at most 1, `[N, K / 32] uint8`, and factors `[N]` that were taken out of them.

    So that a weight of 16 bits holds them. What is 2^127 times smaller than a row's largest is 0.
    """
    largest = exponents.amax(1, keepdim=True).int()
    codes = (exponents.int() - largest + 127).clamp(min=0).to(torch.uint8)
    return codes, torch.exp2(largest.squeeze(1).float() - 127)


def _by_chunks(codes: Tensor) -> Tensor:
    """Halves of bytes put where the kernels look for them.

    Shapes: `[N, K / 2] uint8`, element 2i in the low half of byte i; returns the same shape.
    """
    elements = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(1).unflatten(1, (-1, 2, 16))
    return (elements[:, :, 0] | (elements[:, :, 1] << 4)).flatten(1).contiguous()
