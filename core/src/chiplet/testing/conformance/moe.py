"""Mixtures of experts against the reference."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from torch import Generator, Tensor

from chiplet.api import (
    Activations,
    BuildContext,
    Coding,
    ExpertWeights,
    MoeProvider,
    MoeRequest,
)
from chiplet.reference.moe import DequantizingMoe, PlainMoe
from chiplet.reference.quantization import random_weights
from chiplet.testing.conformance.guards import Placement, place
from chiplet.testing.conformance.tolerance import EPSILON, TORCH_DTYPES, assert_close
from chiplet.testing.conformance.verdict import is_served


class MoeLoad(StrEnum):
    """How tokens are spread over experts."""

    SPREAD = "spread"
    ONE_TAKES_ALL = "one takes all"
    SOME_TAKE_NONE = "some take none"


def check_moe(
    provider: MoeProvider,
    request: MoeRequest,
    context: BuildContext,
    *,
    num_tokens: int,
    load: MoeLoad,
    has_spoilt_row: bool = False,
) -> bool:
    """Whether the provider serves the request; if it does, its result is compared.

    The input is a strided view, and NaN lies beside it.

    Args:
        provider: what is checked.
        request: what is asked of it.
        context: where it runs.
        num_tokens: rows of the input.
        load: how they are spread over experts.
        has_spoilt_row: the last row is NaN, router's logits too, as one of padding may be; the
            others are compared.

    Raises:
        AssertionError: the result is wrong, or an argument was changed.
    """
    if not is_served(provider, request):
        return False
    inputs = _make_inputs(request, num_tokens, load)
    if has_spoilt_row:
        inputs.x[-1] = inputs.logits[-1] = torch.nan
    device = context.torch_device
    x, buffer = place(inputs.x, Placement.WIDE, device)
    router_logits, logits_buffer = place(inputs.logits, Placement.CONTIGUOUS, device)
    before = (buffer.whole.clone(), logits_buffer.whole.clone())
    impl = provider.build(request, context)
    packed = impl.pack(_on_device(inputs.weights, device))
    result = impl.run(x, router_logits, packed).cpu()
    for old, now, name in zip(before, (buffer, logits_buffer), ("x", "logits"), strict=True):
        assert torch.equal(now.whole, old), f"{provider.name} changes {name}, or bytes beside"
    what = f"{provider.name}: {request} of {num_tokens} tokens, {load}"
    assert result.shape == inputs.x.shape, f"{what}: shape {result.shape}"
    compared = slice(0, num_tokens - has_spoilt_row)
    plain, exact = _sums(
        request, replace(inputs, x=inputs.x[compared], logits=inputs.logits[compared])
    )
    assert_close(result[compared], plain, exact, what, slack=_slack(request))
    return True


def check_sliced_moe(provider: MoeProvider, request: MoeRequest, context: BuildContext) -> None:
    """Two ranks, each with half of every expert's middle, add up to the whole.

    Raises:
        AssertionError: they do not.
    """
    inputs = _make_inputs(request, 9, MoeLoad.SPREAD)
    half = request.intermediate_size // 2
    sliced = replace(request, intermediate_size=half)
    device = context.torch_device
    total = torch.zeros_like(inputs.x, dtype=torch.float32)
    for rank in range(2):
        mine = slice(rank * half, (rank + 1) * half)
        gate, up = inputs.weights.gate_up.chunk(2, dim=1)
        gate_up = torch.cat([gate[:, mine], up[:, mine]], dim=1)
        impl = provider.build(sliced, context)
        down = inputs.weights.down[..., mine].contiguous()
        weights = ExpertWeights(gate_up=gate_up.to(device), down=down.to(device))
        packed = impl.pack(weights)
        out = impl.run(inputs.x.to(device), inputs.logits.to(device), packed)
        total += out.cpu().float()
    plain, exact = _sums(request, inputs)
    what = f"{provider.name}: {request}, two halves"
    # Each half is rounded once before the sum.
    slack = EPSILON[inputs.x.dtype]
    assert_close(total.to(inputs.x.dtype), plain, exact, what, slack=slack)


@dataclass(frozen=True, slots=True)
class _Inputs:
    """Of one call, in main memory; see `MoeImpl`."""

    x: Tensor
    logits: Tensor
    weights: ExpertWeights

    def widened(self) -> _Inputs:
        plain = self.weights
        if plain.gate_up_coded is None:
            plain = ExpertWeights(gate_up=plain.gate_up.double(), down=plain.down.double())
        return _Inputs(self.x.double(), self.logits.double(), plain)


def _make_inputs(request: MoeRequest, num_tokens: int, load: MoeLoad) -> _Inputs:
    random = torch.Generator().manual_seed(num_tokens * 1009 + request.num_experts)
    dtype, num = TORCH_DTYPES[request.dtype], request.num_experts
    hidden, width = request.hidden_size, request.intermediate_size
    if request.scheme is None:
        gate_up = torch.randn(num, 2 * width, hidden, generator=random) / hidden**0.5
        down = torch.randn(num, hidden, width, generator=random) / width**0.5
        weights = ExpertWeights(gate_up=gate_up.to(dtype), down=down.to(dtype))
    else:
        first, second = (
            random_weights(request.scheme, (num * rows, columns), random, columns**-0.5)
            for rows, columns in ((2 * width, hidden), (hidden, width))
        )
        weights = ExpertWeights.of_coded(first, second, num)
    x = torch.randn(num_tokens, hidden, generator=random)
    logits = _logits(request, num_tokens, load, random)
    return _Inputs(x.to(dtype), logits.to(dtype), weights)


def _on_device(weights: ExpertWeights, device: torch.device) -> ExpertWeights:
    if weights.gate_up_coded is None or weights.down_coded is None:
        return ExpertWeights(gate_up=weights.gate_up.to(device), down=weights.down.to(device))
    gate_up, down = (
        each.mapped(lambda tensor: tensor.to(device, copy=True))
        for each in (weights.gate_up_coded, weights.down_coded)
    )
    return ExpertWeights.of_coded(gate_up, down, weights.gate_up.shape[0])


def _sums(request: MoeRequest, inputs: _Inputs) -> tuple[Tensor, Tensor]:
    """The reference's result in the request's type, and in float64."""
    widened = inputs.widened()
    if request.scheme is None:
        impl = exact_impl = PlainMoe(request)
    else:
        impl = DequantizingMoe(request)
        exact_impl = DequantizingMoe(request, torch.float64)
    same = impl.run(inputs.x, inputs.logits, inputs.weights)
    return same, exact_impl.run(widened.x, widened.logits, widened.weights)


def _slack(request: MoeRequest) -> float:
    """Room for activations that fall on the other side of a rounding edge, in both products."""
    if request.scheme is None or request.scheme.activations is Activations.KEPT:
        return 0.0
    return 2e-2 if request.scheme.coding is Coding.INT8 else 1e-1


def _logits(request: MoeRequest, num_tokens: int, load: MoeLoad, random: Generator) -> Tensor:
    """Logits apart enough that no rounding changes who is picked."""
    num = request.num_experts
    logits = torch.stack([torch.randperm(num, generator=random) for _ in range(num_tokens)]).float()
    if load is MoeLoad.ONE_TAKES_ALL:
        logits[:, num // 2] = 2.0 * num
    if load is MoeLoad.SOME_TAKE_NONE:
        logits[:, request.top_k :] -= 4.0 * num
    return logits / 4
