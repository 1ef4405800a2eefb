"""Linear layers against the reference."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.nn import functional as F

from chiplet.api import (
    Activations,
    BuildContext,
    Coding,
    GatedLinear,
    LinearProvider,
    LinearRequest,
    LinearWeights,
    Numerics,
    Verdict,
    Yes,
)
from chiplet.reference.linear import quantized_product
from chiplet.reference.ops import silu_mul
from chiplet.reference.quantization import random_weights
from chiplet.testing.conformance.guards import Placement, place
from chiplet.testing.conformance.tolerance import EPSILON, TORCH_DTYPES, assert_close
from chiplet.testing.conformance.verdict import is_served


def check_linear(
    provider: LinearProvider,
    request: LinearRequest,
    context: BuildContext,
    *,
    num_tokens: int,
    placement: Placement = Placement.WIDE,
    has_spoilt_row: bool = False,
) -> bool:
    """Whether the provider serves the request; if it does, its result is compared.

    So is the gated call of an implementation that has it, where a gate is asked for. Of several
    tokens one is all zero. NaN lies around the input, and beside its rows where they
    are `WIDE`.

    Args:
        provider: what is checked.
        request: what is asked of it.
        context: where it runs.
        num_tokens: rows of the input.
        placement: how the input lies in memory.
        has_spoilt_row: the last row is NaN, as one of padding may be; the others are compared.

    Raises:
        AssertionError: the result is wrong, or an argument was changed.
    """
    if not is_served(provider, request):
        return False
    device = context.torch_device
    x, weights = make_inputs(request, num_tokens)
    if has_spoilt_row:
        x[-1] = torch.nan
    placed, buffer = place(x, placement, device)
    before = buffer.whole.clone()
    impl = provider.build(request, context)
    packed = impl.pack(on_device(weights, device))
    result = impl.run(placed, packed).cpu()
    assert torch.equal(buffer.whole, before), f"{provider.name} changes its input, or bytes beside"
    what = f"{provider.name}: {request} of {num_tokens} tokens"
    assert result.shape == (num_tokens, request.out_features), f"{what}: shape {result.shape}"
    compared = slice(0, num_tokens - has_spoilt_row)
    plain, exact = _products(x[compared], weights)
    slack = _slack(request, provider.assess(request))
    assert_close(result[compared], plain, exact, what, slack=slack)
    if request.is_gated and isinstance(impl, GatedLinear):
        gated = impl.run_silu_mul(placed, packed).cpu()
        assert torch.equal(buffer.whole, before), f"{provider.name} changes its input for a gate"
        assert gated.shape == (num_tokens, request.out_features // 2), f"{what}: {gated.shape}"
        # A factor's error counts as often as the other factor is large.
        assert_close(
            gated[compared], silu_mul(plain), silu_mul(exact), f"{what}, gated", slack=2 * slack
        )
    return True


def check_sliced_linear(
    provider: LinearProvider, request: LinearRequest, context: BuildContext
) -> None:
    """Two ranks that hold half of the outputs, or half of the inputs each, give the whole.

    Raises:
        AssertionError: they do not.
    """
    assert request.scheme is None, "slices of quantized weights belong to the loader"
    x, weights = make_inputs(request, 5)
    plain, exact = _products(x, weights)
    n, k = request.out_features // 2, request.in_features // 2
    by_output, by_input = replace(request, out_features=n), replace(request, in_features=k)

    def run(request: LinearRequest, x: torch.Tensor, part: LinearWeights) -> torch.Tensor:
        impl = provider.build(request, context)
        packed = impl.pack(on_device(part, context.torch_device))
        return impl.run(x.to(context.torch_device), packed).cpu()

    outputs, inputs = (slice(0, n), slice(n, None)), (slice(0, k), slice(k, None))
    columns = [run(by_output, x, replace(weights, weight=weights.weight[each])) for each in outputs]
    what = f"{provider.name}: {request} over two ranks"
    assert_close(torch.cat(columns, dim=1), plain, exact, f"{what}, by outputs")
    terms = [
        run(by_input, x[:, each], replace(weights, weight=weights.weight[:, each].contiguous()))
        for each in inputs
    ]
    total = (terms[0].float() + terms[1].float()).to(x.dtype)
    # Each half is rounded once before the sum.
    assert_close(total, plain, exact, f"{what}, by inputs", slack=EPSILON[x.dtype])


def make_inputs(request: LinearRequest, num_tokens: int) -> tuple[torch.Tensor, LinearWeights]:
    """Random input and weights in main memory, the same for the same arguments."""
    dtype, k, n = TORCH_DTYPES[request.dtype], request.in_features, request.out_features
    random = torch.Generator().manual_seed(num_tokens * 1009 + k * 31 + n)
    weights = _weights(request, dtype, random)
    x = torch.randn(num_tokens, k, generator=random).to(dtype)
    if num_tokens > 1:
        x[num_tokens // 2] = 0
    return x, weights


def on_device(weights: LinearWeights, device: torch.device) -> LinearWeights:
    """A copy of weights on a device."""
    return weights.mapped(lambda tensor: tensor.to(device, copy=True))


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


def _slack(request: LinearRequest, verdict: Verdict) -> float:
    """Room for what the provider says that it rounds, and for an activation that falls on the other
    side of a rounding edge.
    """
    if isinstance(verdict, Yes) and verdict.numerics is Numerics.INT8_ACTIVATIONS:
        return 3e-2
    if request.scheme is None or request.scheme.activations is Activations.KEPT:
        return 0.0
    return 1e-2 if request.scheme.coding is Coding.INT8 else 5e-2
