"""Captured tokens against the weights that the reference computes in full."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from chiplet.api import (
    AttentionProvider,
    AttentionRequest,
    BuildContext,
    Captured,
    CapturingAttention,
)
from chiplet.reference.attention import PlainAttention
from chiplet.testing.conformance.attention import GuardedKv
from chiplet.testing.conformance.attention_inputs import (
    AttentionCase,
    Inputs,
    PlacedTensors,
    attend,
    make_inputs,
    on_device,
    sinks_of,
)
from chiplet.testing.conformance.guards import Placement
from chiplet.testing.conformance.verdict import is_served

_SLACK = 1e-4
"""Of a weight: sums of float32 in another order, and what the exponential makes of them."""


def check_capture(
    provider: AttentionProvider,
    request: AttentionRequest,
    context: BuildContext,
    case: AttentionCase,
) -> bool:
    """Whether the provider serves the request; if it does, what it captures is compared.

    Equal weights may come in any order, and of nearly equal ones any may be left out.

    Raises:
        AssertionError: a token is named that is not seen, or twice; a weight is another; or a token
            is missing whose weight is larger.
    """
    assert request.num_captured, "the request captures nothing"
    if not is_served(provider, request):
        return False
    inputs, device = make_inputs(request, case, 1.0), context.torch_device
    exact = _all_weights(request, inputs.widened())
    impl = provider.build(request, context)
    for layout in impl.layouts():
        what = f"{provider.name}, layout {layout.name}, {case.name}"
        placed = PlacedTensors(inputs, Placement.STACKED, device)
        kv = GuardedKv(layout, request.kv, inputs.canonical, device)
        batch = on_device(inputs.batch, device, first_page=0, page_size=request.kv.page_size)
        plan = impl.plan(batch, layout)
        attend(impl, request, placed, kv.tensor, plan)
        assert isinstance(impl, CapturingAttention), (
            f"{what}: built to capture, and has no `capture`"
        )
        found = impl.capture(placed.q, kv.tensor, plan, sinks_of(request, device))
        _check(Captured(found.tokens.cpu(), found.weights.cpu()), exact, request, what)
        placed.check(what)
        kv.check(what)
    return True


def _all_weights(request: AttentionRequest, inputs: Inputs) -> Captured:
    """Every token that each token sees, by weight."""
    most = int(inputs.batch.kv_lengths.max())
    plain = PlainAttention(replace(request, num_captured=most))
    cache = inputs.canonical.clone()
    plan = plain.plan(inputs.batch, plain.layouts()[0])
    attend(plain, request, inputs, cache, plan)
    return plain.capture(inputs.q, cache, plan, sinks_of(request, cache.device))


def _check(found: Captured, exact: Captured, request: AttentionRequest, what: str) -> None:
    num_tokens, num_heads, _ = exact.tokens.shape
    shape = (num_tokens, num_heads, request.num_captured)
    for each, dtype in zip(found, (torch.int32, torch.float32), strict=True):
        assert each.shape == shape, f"{what}: shape {tuple(each.shape)}, expected {shape}"
        assert each.dtype == dtype, f"{what}: type {each.dtype}, expected {dtype}"
    weights = _by_token(exact)
    num_seen = (exact.tokens >= 0).sum(dim=-1, keepdim=True)
    is_wanted = torch.arange(shape[-1]) < num_seen
    is_named = found.tokens >= 0
    assert torch.equal(is_named, is_wanted), f"{what}: too few tokens are named, or too many"
    named = torch.where(is_named, found.tokens, -1).long()
    ordered = named.sort(dim=-1).values
    is_twice = (ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)
    assert not is_twice.any(), f"{what}: a token is named twice"
    assert (named < weights.shape[-1] - 1).all(), f"{what}: a token is named that is not seen"
    expected = weights.gather(2, named + 1)  # place 0 is that of no token
    assert not expected.isnan().any(), f"{what}: a token is named that is not seen"
    assert _is_near(found.weights, expected), f"{what}: weights differ from those of their tokens"
    largest = exact.weights[..., : shape[-1]]
    padded = torch.zeros(shape, dtype=largest.dtype)
    padded[..., : largest.shape[-1]] = largest
    assert _is_near(found.weights, padded), f"{what}: larger weights are missing, or out of order"


def _is_near(weights: Tensor, expected: Tensor) -> bool:
    return bool(((weights.double() - expected.double()).abs() <= _SLACK).all())


def _by_token(exact: Captured) -> Tensor:
    """Weights by place in the cache, `[num_tokens, num_heads, 1 + most]`; NaN for no token seen."""
    table = torch.full((*exact.tokens.shape[:2], exact.tokens.shape[2] + 1), torch.nan).double()
    table.scatter_(2, exact.tokens.long() + 1, exact.weights.double())
    table[..., 0] = 0
    return table
