"""A small call of a mixture of experts, in its true size where memory allows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from chiplet.api import ExpertWeights, LinearWeights, MoeImpl, MoeRequest, WeightScheme
from chiplet.layers.context import torch_dtype
from chiplet.reference.quantization import random_weights

_TOKENS = (1, 7)
_DISTINCT_ROWS = 251
"""As of a linear layer: a prime number of rows, repeated, so that no two experts are alike."""


MOST_BYTES = 256 * 2**20
"""Of weights; packing them may take as much again."""

_FEWEST_EXPERTS = 8
_NARROWEST = 128

_UNIT = 128
"""Inputs that no scheme's groups divide into parts."""


def bounded_moe(request: MoeRequest) -> MoeRequest:
    """The request itself, or a part of it whose weights are not too large to be made.

    A part has fewer experts, then a slice of each as a rank of several has.
    """
    if _weight_bytes(request) <= MOST_BYTES:
        return request
    num_experts = min(request.num_experts, max(2 * request.top_k, _FEWEST_EXPERTS))
    part = replace(request, num_experts=num_experts)
    while _weight_bytes(part) > MOST_BYTES:
        half, odd = divmod(part.intermediate_size, 2)
        if odd or half < _NARROWEST or (part.scheme is not None and half % _UNIT):
            break
        part = replace(part, intermediate_size=half)
    return part


def _weight_bytes(request: MoeRequest) -> int:
    elements = 3 * request.num_experts * request.hidden_size * request.intermediate_size
    return elements * request.dtype.size_bytes


def run_moe(request: MoeRequest, impl: MoeImpl, device: torch.device) -> Sequence[Tensor]:
    """Results of one token and of a few, always of the same numbers."""
    random = torch.Generator().manual_seed(1)
    dtype, num_experts = torch_dtype(request.dtype), request.num_experts
    x = torch.randn(max(_TOKENS), request.hidden_size, generator=random).to(dtype).to(device)
    packed = impl.pack(_weights(request, random, device))
    router_logits = _distinct_logits(num_experts, random).to(dtype).to(device)
    return [impl.run(x[:count], router_logits[:count], packed) for count in _TOKENS]


def _weights(request: MoeRequest, random: torch.Generator, device: torch.device) -> ExpertWeights:
    hidden, width, num_experts = request.hidden_size, request.intermediate_size, request.num_experts
    shapes = ((num_experts, 2 * width, hidden), (num_experts, hidden, width))
    if request.scheme is None:
        dtype = torch_dtype(request.dtype)
        gate_up, down = (_repeated(shape, random, dtype, device) for shape in shapes)
        return ExpertWeights(gate_up=gate_up, down=down)
    gate_up, down = (_repeated_codes(shape, request.scheme, random, device) for shape in shapes)
    return ExpertWeights.of_coded(gate_up, down, num_experts)


def _repeated_codes(
    shape: tuple[int, int, int],
    scheme: WeightScheme,
    random: torch.Generator,
    device: torch.device,
) -> LinearWeights:
    num_experts, num_rows, width = shape
    some = random_weights(scheme, (_DISTINCT_ROWS, width), random, width**-0.5)
    places = torch.arange(num_experts * num_rows, device=device) % _DISTINCT_ROWS
    return some.mapped(lambda tensor: tensor.to(device)[places])


def _repeated(
    shape: tuple[int, int, int], random: torch.Generator, dtype: torch.dtype, device: torch.device
) -> Tensor:
    num_experts, num_rows, width = shape
    some = torch.randn(_DISTINCT_ROWS, width, generator=random) / width**0.5
    places = torch.arange(num_experts * num_rows, device=device) % _DISTINCT_ROWS
    return some.to(dtype).to(device)[places].view(shape)


def _distinct_logits(num_experts: int, random: torch.Generator) -> Tensor:
    """No two of a row are equal, so that it is plain which are picked; `[tokens, num_experts]`."""
    levels = torch.linspace(-4, 4, num_experts)
    order = [torch.randperm(num_experts, generator=random) for _ in range(max(_TOKENS))]
    return torch.stack([levels[each] for each in order])
