"""Linear layers against the reference."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from chiplet.api import BuildContext, LinearProvider, LinearRequest
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
    weight = (torch.randn(n, k, generator=random) / k**0.5).to(dtype)
    bias = torch.randn(n, generator=random).to(dtype) if request.has_bias else None
    wide = torch.full((num_tokens, k + 16), torch.nan, dtype=dtype)
    wide[:, :k] = torch.randn(num_tokens, k, generator=random)
    device = context.torch_device
    x = wide.to(device)[:, :k]
    before = x.clone()
    impl = provider.build(request, context)
    packed = impl.pack(weight.to(device), None if bias is None else bias.to(device))
    result = impl.run(x, packed)
    assert torch.equal(x, before), f"{provider.name} changes its input"
    plain = F.linear(wide[:, :k], weight, bias)
    exact = F.linear(wide[:, :k].double(), weight.double(), None if bias is None else bias.double())
    assert_close(result.cpu(), plain, exact, f"{provider.name}: {request} of {num_tokens} tokens")
    return True
