"""Linear layers against the reference."""

from __future__ import annotations

from dataclasses import fields, replace

import torch
from torch.nn import functional as F

from chiplet.api import (
    Activations,
    BuildContext,
    Coding,
    LinearProvider,
    LinearRequest,
    LinearWeights,
)
from chiplet.reference.linear import quantized_product
from chiplet.reference.quantization import random_weights
from chiplet.testing.conformance.tolerance import TORCH_DTYPES, assert_close
from chiplet.testing.conformance.verdict import is_served


def check_linear(
    provider: LinearProvider, request: LinearRequest, context: BuildContext, *, num_tokens: int
) -> bool:
    """Whether the provider serves the request; if it does, its result is compared.

    The input is a strided view, and NaN lies beside it.

    Raises:
        AssertionError: the result is wrong, or an argument was changed.
    """
    if not is_served(provider, request):
        return False
    dtype, k, n = TORCH_DTYPES[request.dtype], request.in_features, request.out_features
    random = torch.Generator().manual_seed(num_tokens * 1009 + k * 31 + n)
    weights = _weights(request, dtype, random)
    wide = torch.full((num_tokens, k + 16), torch.nan, dtype=dtype)
    wide[:, :k] = torch.randn(num_tokens, k, generator=random)
    device = context.torch_device
    x = wide.to(device)[:, :k]
    before = x.clone()
    impl = provider.build(request, context)
    packed = impl.pack(on_device(weights, device))
    result = impl.run(x, packed)
    assert torch.equal(x, before), f"{provider.name} changes its input"
    plain, exact = _products(wide[:, :k], weights)
    what = f"{provider.name}: {request} of {num_tokens} tokens"
    assert_close(result.cpu(), plain, exact, what, slack=_slack(request))
    return True


def on_device(weights: LinearWeights, device: torch.device) -> LinearWeights:
    """A copy of weights on a device."""
    moved = {
        each.name: value.to(device, copy=True)
        for each in fields(weights)
        if isinstance(value := getattr(weights, each.name), torch.Tensor)
    }
    return replace(weights, **moved)


def _weights(request: LinearRequest, dtype: torch.dtype, random: torch.Generator) -> LinearWeights:
    n, k = request.out_features, request.in_features
    bias = torch.randn(n, generator=random).to(dtype) if request.has_bias else None
    if request.scheme is not None:
        weights = random_weights(request.scheme, (n, k), random, k**-0.5)
        return replace(weights, bias=bias)
    weight = (torch.randn(n, k, generator=random) / k**0.5).to(dtype)
    return LinearWeights(scheme=None, weight=weight, bias=bias)


def _products(x: torch.Tensor, weights: LinearWeights) -> tuple[torch.Tensor, torch.Tensor]:
    """The result in the type of x, and the one in float64."""
    if weights.scheme is not None:
        plain = quantized_product(x, weights).to(x.dtype)
        return plain, quantized_product(x, weights, torch.float64)
    bias = None if weights.bias is None else weights.bias.double()
    plain = F.linear(x, weights.weight, weights.bias)
    return plain, F.linear(x.double(), weights.weight.double(), bias)


def _slack(request: LinearRequest) -> float:
    """Room for an activation that falls on the other side of a rounding edge."""
    if request.scheme is None or request.scheme.activations is Activations.KEPT:
        return 0.0
    return 1e-2 if request.scheme.coding is Coding.INT8 else 5e-2
