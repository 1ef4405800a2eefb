"""Mixtures of experts: tokens sorted by expert, then two products over the groups."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from chiplet.api import (
    BuildContext,
    ExpertWeights,
    MoeRequest,
    No,
    Packed,
    Tier,
    Verdict,
    Yes,
)
from chiplet_triton.device import DeviceTraits, launch_options
from chiplet_triton.kernels.grouped_linear import down_kernel, gate_up_kernel
from chiplet_triton.linear.schemes import QUANTIZED_FEATURES, refusal
from chiplet_triton.moe.cut import Cut, Pairs, Tiling
from chiplet_triton.moe.quantized import QuantizedExperts

_MAX_TOKENS = 2048
"""At a time: what the experts of so many tokens give stands in float32 until it is summed up."""


class PlainExperts:
    """The two products, of plain weights."""

    def __init__(self, request: MoeRequest, traits: DeviceTraits) -> None:
        self._request = request
        self._overlap = traits.can_overlap
        self._launch = launch_options(traits)

    def pack(self, weights: ExpertWeights) -> ExpertWeights:
        """Keeps both tensors."""
        return weights

    def tiling(self, average: float) -> Tiling:
        """By how many pairs an expert has on average."""
        block_k = 32 if self._request.dtype.size_bytes == 4 else 64
        if average <= 16:
            return Tiling(16, 64, 2 * block_k, 4, 3)
        if average <= 64 or block_k == 32:
            return Tiling(64, 64, block_k, 4, 3)
        return Tiling(128, 128, block_k, 8, 3)

    def gate_up(self, x: Tensor, packed: ExpertWeights, pairs: Pairs, cut: Cut) -> Tensor:
        """The middle of each pair, in sorted order: `[num_pairs, intermediate_size]`."""
        request = self._request
        width = request.intermediate_size
        middle = torch.empty(len(pairs.order), width, dtype=x.dtype, device=x.device)
        gate_up_kernel[cut.grid(width)](
            x,
            packed.gate_up,
            pairs.order,
            pairs.starts,
            middle,
            request.num_experts,
            request.top_k,
            x.stride(0),
            K=request.hidden_size,
            N=width,
            **self._constants(cut),
        )
        return middle

    def down(self, middle: Tensor, packed: ExpertWeights, pairs: Pairs, cut: Cut) -> Tensor:
        """What each pair adds to its token, in the order of tokens.

        Shapes: `[num_pairs, hidden_size] float32`.
        """
        request = self._request
        hidden = request.hidden_size
        added = torch.empty(len(middle), hidden, dtype=torch.float32, device=middle.device)
        down_kernel[cut.grid(hidden)](
            middle,
            packed.down,
            pairs.order,
            pairs.starts,
            pairs.weights,
            added,
            request.num_experts,
            K=request.intermediate_size,
            N=hidden,
            **self._constants(cut),
        )
        return added

    def _constants(self, cut: Cut) -> dict[str, Any]:
        return cut.constants() | {"OVERLAP": self._overlap} | self._launch


class GroupedMoe:
    """No tensor's shape depends on the routing, and the host waits for nothing."""

    def __init__(self, request: MoeRequest, experts: PlainExperts | QuantizedExperts) -> None:
        self._request = request
        self._experts = experts
        self.pack = experts.pack

    def run(self, x: Tensor, router_logits: Tensor, packed: Packed) -> Tensor:
        """The weighted sum; see `chiplet.api.MoeImpl.run`."""
        if x.shape[0] <= _MAX_TOKENS:
            return self._run(x, router_logits, packed)
        parts = zip(x.split(_MAX_TOKENS), router_logits.split(_MAX_TOKENS), strict=True)
        return torch.cat([self._run(rows, logits, packed) for rows, logits in parts])

    def _run(self, x: Tensor, router_logits: Tensor, packed: Packed) -> Tensor:
        request, experts = self._request, self._experts
        num_tokens, num_pairs = x.shape[0], x.shape[0] * request.top_k
        if num_tokens == 0:
            return torch.empty(x.shape, dtype=x.dtype, device=x.device)
        pairs = self._sorted_pairs(router_logits)
        tiling = experts.tiling(num_pairs / request.num_experts)
        cut = Cut(tiling, num_pairs // tiling.pairs + request.num_experts)
        middle = experts.gate_up(x, packed, pairs, cut)
        added = experts.down(middle, packed, pairs, cut)
        return added.unflatten(0, (num_tokens, request.top_k)).sum(dim=1).to(x.dtype)

    def _sorted_pairs(self, router_logits: Tensor) -> Pairs:
        """Pairs of `[num_tokens, num_experts]` logits."""
        request = self._request
        probs = torch.softmax(router_logits.float(), dim=-1)
        weights, expert_ids = probs.topk(request.top_k, dim=-1)
        if request.renormalize:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        sorted_ids, order = expert_ids.flatten().sort(stable=True)
        experts = torch.arange(request.num_experts + 1, device=order.device)
        return Pairs(weights.flatten(), order, torch.searchsorted(sorted_ids, experts))


class TritonMoeProvider:
    """Serves mixtures of plain weights, and of ones of eight and four bits."""

    name = "triton"
    accepts = QUANTIZED_FEATURES

    def __init__(self, traits: DeviceTraits) -> None:
        self._traits = traits

    def assess(self, request: MoeRequest) -> Verdict:
        """Yes, unless weights are quantized in another way."""
        if request.scheme is not None:
            widths = (request.hidden_size, request.intermediate_size)
            reasons = [refusal(request.scheme, each, self._traits) for each in widths]
            if any(reasons):
                return No.because("scheme", next(filter(None, reasons)))
        return Yes(Tier.GENERIC, "tokens sorted by expert, two grouped products")

    def build(self, request: MoeRequest, context: BuildContext) -> GroupedMoe:
        """Kernels for the request's shapes; compiled at their first launch."""
        kind = PlainExperts if request.scheme is None else QuantizedExperts
        return GroupedMoe(request, kind(request, self._traits))
