"""Reference mixture of experts: every expert sees every token, and most weigh nothing."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from chiplet.api import (
    BuildContext,
    ExpertWeights,
    Feature,
    LinearWeights,
    MoeRequest,
    Tier,
    Verdict,
    Yes,
)
from chiplet.reference.linear import quantized_product
from chiplet.reference.ops import silu_mul
from chiplet.reference.quantization import rows


def route(router_logits: Tensor, top_k: int, *, renormalize: bool) -> Tensor:
    """The weight of every expert for every token, 0 for those not picked.

    Shapes: router_logits and result `[num_tokens, num_experts]`; the result is at least float32.
    """
    wide = torch.promote_types(router_logits.dtype, torch.float32)
    probs = torch.softmax(router_logits.to(wide), dim=-1)
    weights, expert_ids = probs.topk(top_k, dim=-1)
    if renormalize:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return torch.zeros_like(probs).scatter(1, expert_ids, weights)


class PlainMoe:
    """No tensor's shape depends on the routing, so that the whole can be traced."""

    def __init__(self, request: MoeRequest) -> None:
        self._top_k = request.top_k
        self._renormalize = request.renormalize

    def pack(self, weights: ExpertWeights) -> ExpertWeights:
        """Keeps both tensors."""
        return weights

    def run(self, x: Tensor, router_logits: Tensor, packed: ExpertWeights) -> Tensor:
        """The weighted sum; see `chiplet.api.MoeImpl.run`."""
        weights = route(router_logits, self._top_k, renormalize=self._renormalize)
        total = torch.zeros_like(x, dtype=weights.dtype)
        for expert in range(weights.shape[1]):
            gate, up = F.linear(x, packed.gate_up[expert]).chunk(2, dim=-1)
            y = F.linear(F.silu(gate) * up, packed.down[expert])
            total = total + weights[:, expert : expert + 1] * y
        return total.to(x.dtype)


class DequantizingMoe:
    """The same on quantized weights, dequantized anew in each call."""

    def __init__(self, request: MoeRequest, product_dtype: torch.dtype | None = None) -> None:
        """Serve a request.

        Args:
            request: with a scheme.
            product_dtype: in which products are computed and kept; None for float32, rounded to the
                type of the input.
        """
        self._request = request
        self._product_dtype = product_dtype

    def pack(self, weights: ExpertWeights) -> ExpertWeights:
        """Keeps the tensors."""
        return weights

    def run(self, x: Tensor, router_logits: Tensor, packed: ExpertWeights) -> Tensor:
        """The weighted sum; see `chiplet.api.MoeImpl.run`."""
        request = self._request
        assert packed.gate_up_coded is not None
        assert packed.down_coded is not None
        weights = route(router_logits, request.top_k, renormalize=request.renormalize)
        total = torch.zeros_like(x, dtype=weights.dtype)
        for expert in range(request.num_experts):
            gate_up = self._product(x, packed.gate_up_coded, expert)
            middle = silu_mul(gate_up)
            y = self._product(middle, packed.down_coded, expert)
            total = total + weights[:, expert : expert + 1] * y
        return total.to(x.dtype)

    def _product(self, x: Tensor, experts: LinearWeights, expert: int) -> Tensor:
        num_outputs = experts.weight.shape[0] // self._request.num_experts
        one = rows(experts, expert * num_outputs, (expert + 1) * num_outputs)
        return quantized_product(x, one, self._product_dtype or torch.float32).to(x.dtype)


class ReferenceMoe:
    """Serves every mixture on any device that torch serves."""

    name = "reference"
    accepts = frozenset(Feature)

    def assess(self, request: MoeRequest) -> Verdict:
        """Always yes, with the lowest score."""
        return Yes(Tier.REFERENCE)

    def build(self, request: MoeRequest, context: BuildContext) -> PlainMoe | DequantizingMoe:
        """The plain sum, or that of dequantized weights."""
        return PlainMoe(request) if request.scheme is None else DequantizingMoe(request)
