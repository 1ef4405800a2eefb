"""A small call of a linear layer in its true size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from chiplet.api import LinearImpl, LinearRequest, LinearWeights
from chiplet.layers.context import torch_dtype
from chiplet.layers.gated import GatedRun, gated_run, run_then_gate
from chiplet.reference.ops import silu_mul
from chiplet.reference.quantization import random_weights

_TOKENS = (1, 7)
_DISTINCT_ROWS = 251
"""Random numbers for all rows of a large layer would take longer than the rest of the check; a
prime number of rows, repeated, still shows a block that is out of place."""


def run_linear(request: LinearRequest, impl: LinearImpl, device: torch.device) -> Sequence[Tensor]:
    """Results of one token and of a few, always of the same numbers; then with a gate, if asked."""
    random = torch.Generator().manual_seed(1)
    k, dtype = request.in_features, torch_dtype(request.dtype)
    x = torch.randn(max(_TOKENS), k, generator=random).to(dtype).to(device)
    packed = impl.pack(make_weights(request, random, device))
    runs: list[GatedRun] = [impl.run]
    if request.is_gated:
        runs.append(gated_run(impl, silu_mul) or run_then_gate(impl, silu_mul))
    return [run(x[:count], packed) for run in runs for count in _TOKENS]


def make_weights(
    request: LinearRequest, random: torch.Generator, device: torch.device
) -> LinearWeights:
    """Weights of a layer's true size, fresh on the device."""
    k, n, dtype = request.in_features, request.out_features, torch_dtype(request.dtype)
    bias = torch.randn(n, generator=random).to(dtype) if request.has_bias else None
    if request.scheme is not None:
        made = replace(random_weights(request.scheme, (n, k), random, k**-0.5), bias=bias)
    else:
        some = (torch.randn(min(n, _DISTINCT_ROWS), k, generator=random) / k**0.5).to(dtype)
        weight = some.repeat(-(-n // len(some)), 1)[:n].contiguous()
        made = LinearWeights(scheme=None, weight=weight, bias=bias)
    return made.mapped(lambda tensor: tensor.to(device))
