"""Mixtures of experts against the reference."""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import Generator, Tensor

from chiplet.api import BuildContext, MoeProvider, MoeRequest
from chiplet.reference.moe import PlainMoe
from chiplet.testing.conformance.tolerance import TORCH_DTYPES, assert_close
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
) -> bool:
    """Whether the provider serves the request; if it does, its result is compared.

    The input is a strided view, and NaN lies beside it.

    Raises:
        AssertionError: the result is wrong, or an argument was changed.
    """
    if not is_served(provider, request):
        return False
    random = torch.Generator().manual_seed(num_tokens * 1009 + request.num_experts)
    dtype, hidden, width = (
        TORCH_DTYPES[request.dtype],
        request.hidden_size,
        request.intermediate_size,
    )
    gate_up = torch.randn(request.num_experts, 2 * width, hidden, generator=random) / hidden**0.5
    down = torch.randn(request.num_experts, hidden, width, generator=random) / width**0.5
    weights = (gate_up.to(dtype), down.to(dtype))
    wide = torch.full((num_tokens, hidden + 16), torch.nan, dtype=dtype)
    wide[:, :hidden] = torch.randn(num_tokens, hidden, generator=random)
    logits = _logits(request, num_tokens, load, random).to(dtype)
    x, router_logits = wide.to(context.torch_device)[:, :hidden], logits.to(context.torch_device)
    before = x.clone()
    impl = provider.build(request, context)
    packed = impl.pack(*(each.to(context.torch_device) for each in weights))
    result = impl.run(x, router_logits, packed)
    assert torch.equal(x, before), f"{provider.name} changes its input"
    assert torch.equal(router_logits.cpu(), logits), f"{provider.name} changes the router's logits"
    plain = PlainMoe(request)
    same = plain.run(wide[:, :hidden], logits, plain.pack(*weights))
    exact = plain.run(
        wide[:, :hidden].double(), logits.double(), plain.pack(*(each.double() for each in weights))
    )
    what = f"{provider.name}: {request} of {num_tokens} tokens, {load}"
    assert_close(result.cpu(), same, exact, what)
    return True


def _logits(request: MoeRequest, num_tokens: int, load: MoeLoad, random: Generator) -> Tensor:
    """Logits apart enough that no rounding changes who is picked."""
    num = request.num_experts
    logits = torch.stack([torch.randperm(num, generator=random) for _ in range(num_tokens)]).float()
    if load is MoeLoad.ONE_TAKES_ALL:
        logits[:, num // 2] = 2.0 * num
    if load is MoeLoad.SOME_TAKE_NONE:
        logits[:, request.top_k :] -= 4.0 * num
    return logits / 4
