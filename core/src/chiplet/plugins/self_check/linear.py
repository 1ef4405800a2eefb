"""A small call of a linear layer in its true size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from chiplet.api import Granularity, LinearImpl, LinearRequest, LinearWeights
from chiplet.layers.context import torch_dtype
from chiplet.layers.gated import GatedRun, gated_run, run_then_gate
from chiplet.reference.ops import silu_mul
from chiplet.reference.quantization import picked, random_weights

_TOKENS = (1, 7)
_DISTINCT_ROWS = 251
"""Random numbers and the reference's products for all rows of a large layer would take longer than
the rest of a start; a prime number of rows, repeated, still shows a block that is out of place."""


def run_linear(request: LinearRequest, impl: LinearImpl, device: torch.device) -> Sequence[Tensor]:
    """Results of one token and of a few, always of the same numbers; then with a gate, if asked."""
    x, random = _inputs(request, device)
    packed = impl.pack(make_weights(request, random, device))
    runs: list[GatedRun] = [impl.run]
    if request.is_gated:
        runs.append(gated_run(impl, silu_mul) or run_then_gate(impl, silu_mul))
    return [run(x[:count], packed) for run in runs for count in _TOKENS]


def expected_of_linear(
    request: LinearRequest, reference: LinearImpl, device: torch.device
) -> Sequence[Tensor]:
    """What `run_linear` must give: the distinct rows by the reference, their results repeated."""
    x, random = _inputs(request, device)
    some = _distinct_weights(request, random, device)
    packed, places = reference.pack(some), _repeated(some, request.out_features)
    results = [reference.run(x[:count], packed)[:, places] for count in _TOKENS]
    return results + [silu_mul(each) for each in results] if request.is_gated else results


def make_weights(
    request: LinearRequest, random: torch.Generator, device: torch.device
) -> LinearWeights:
    """Weights of a layer's true size on the device, of few distinct rows."""
    some = _distinct_weights(request, random, device)
    return picked(some, _repeated(some, request.out_features))


def _inputs(request: LinearRequest, device: torch.device) -> tuple[Tensor, torch.Generator]:
    """Activations, and where the numbers of weights come from then."""
    random = torch.Generator().manual_seed(1)
    x = torch.randn(max(_TOKENS), request.in_features, generator=random)
    return x.to(torch_dtype(request.dtype)).to(device), random


def _distinct_weights(
    request: LinearRequest, random: torch.Generator, device: torch.device
) -> LinearWeights:
    """Some rows of a layer; all of them where rows share scales and cannot be repeated."""
    k, n, dtype = request.in_features, request.out_features, torch_dtype(request.dtype)
    scheme = request.scheme
    if scheme is None or scheme.granularity is not Granularity.BLOCK:
        n = min(n, _DISTINCT_ROWS)
    bias = torch.randn(n, generator=random).to(dtype) if request.has_bias else None
    if scheme is not None:
        made = replace(random_weights(scheme, (n, k), random, k**-0.5), bias=bias)
    else:
        weight = (torch.randn(n, k, generator=random) / k**0.5).to(dtype)
        made = LinearWeights(scheme=None, weight=weight, bias=bias)
    return made.mapped(lambda tensor: tensor.to(device))


def _repeated(some: LinearWeights, out_features: int) -> Tensor:
    """Which of some rows stands in each place of the whole layer."""
    num_rows, device = some.weight.shape[0], some.weight.device
    return torch.arange(out_features, device=device) % num_rows
