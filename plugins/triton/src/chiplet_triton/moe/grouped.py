"""Mixtures of experts: tokens sorted by expert, then two products over the groups."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from triton import cdiv

from chiplet.api import BuildContext, ExpertWeights, Feature, MoeRequest, Tier, Verdict, Yes
from chiplet_triton.device import DOT_PRECISION, DeviceTraits, launch_options
from chiplet_triton.kernels.grouped_linear import down_kernel, gate_up_kernel

_MAX_TOKENS = 2048
"""At a time: what the experts of so many tokens give stands in float32 until it is summed up."""


class Tiling(NamedTuple):
    """How the products are cut.

    Attributes:
        pairs: of a token and an expert, per program.
        outputs: per program.
        block_k: elements of K per step.
    """

    pairs: int
    outputs: int
    block_k: int
    num_warps: int
    num_stages: int


class GroupedMoe:
    """No tensor's shape depends on the routing, and the host waits for nothing."""

    def __init__(self, request: MoeRequest, traits: DeviceTraits) -> None:
        self._request = request
        self._traits = traits
        self._launch = launch_options(traits)

    def pack(self, weights: ExpertWeights) -> ExpertWeights:
        """Keeps both tensors."""
        return weights

    def run(self, x: Tensor, router_logits: Tensor, packed: ExpertWeights) -> Tensor:
        """The weighted sum; see `chiplet.api.MoeImpl.run`."""
        if x.shape[0] <= _MAX_TOKENS:
            return self._run(x, router_logits, packed)
        parts = zip(x.split(_MAX_TOKENS), router_logits.split(_MAX_TOKENS), strict=True)
        return torch.cat([self._run(rows, logits, packed) for rows, logits in parts])

    def _run(self, x: Tensor, router_logits: Tensor, packed: ExpertWeights) -> Tensor:
        request = self._request
        num_tokens, num_pairs = x.shape[0], x.shape[0] * request.top_k
        if num_tokens == 0:
            return torch.empty(x.shape, dtype=x.dtype, device=x.device)
        weights, order, starts = self._sorted_pairs(router_logits)
        tiling = self._tiling(num_pairs)
        blocks = num_pairs // tiling.pairs + request.num_experts
        cut = {
            "BLOCK_M": tiling.pairs,
            "BLOCK_N": tiling.outputs,
            "BLOCK_K": tiling.block_k,
            "PRECISION": DOT_PRECISION,
            "OVERLAP": self._traits.can_overlap,
            "num_warps": tiling.num_warps,
            "num_stages": tiling.num_stages,
            **self._launch,
        }
        width, hidden = request.intermediate_size, request.hidden_size
        middle = torch.empty(num_pairs, width, dtype=x.dtype, device=x.device)
        gate_up_kernel[(cdiv(width, tiling.outputs), blocks)](
            x,
            packed.gate_up,
            order,
            starts,
            middle,
            request.num_experts,
            request.top_k,
            x.stride(0),
            K=hidden,
            N=width,
            **cut,
        )
        added = torch.empty(num_pairs, hidden, dtype=torch.float32, device=x.device)
        down_kernel[(cdiv(hidden, tiling.outputs), blocks)](
            middle,
            packed.down,
            order,
            starts,
            weights,
            added,
            request.num_experts,
            K=width,
            N=hidden,
            **cut,
        )
        return added.unflatten(0, (num_tokens, request.top_k)).sum(dim=1).to(x.dtype)

    def _sorted_pairs(self, router_logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Weights of all pairs, pairs in the order of their experts, and where each one's begin.

        Shapes: router_logits `[n, num_experts]`; returns `[n * top_k] float32`, `[n * top_k]` and
        `[num_experts + 1]`, both int64.
        """
        request = self._request
        probs = torch.softmax(router_logits.float(), dim=-1)
        weights, expert_ids = probs.topk(request.top_k, dim=-1)
        if request.renormalize:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        sorted_ids, order = expert_ids.flatten().sort(stable=True)
        experts = torch.arange(request.num_experts + 1, device=order.device)
        return weights.flatten(), order, torch.searchsorted(sorted_ids, experts)

    def _tiling(self, num_pairs: int) -> Tiling:
        """By how many pairs an expert has on average."""
        block_k = 32 if self._request.dtype.size_bytes == 4 else 64
        average = num_pairs / self._request.num_experts
        if average <= 16:
            return Tiling(16, 64, 2 * block_k, 4, 3)
        if average <= 64 or block_k == 32:
            return Tiling(64, 64, block_k, 4, 3)
        return Tiling(128, 128, block_k, 8, 3)


class TritonMoeProvider:
    """Serves every mixture of plain weights."""

    name = "triton"
    accepts: frozenset[Feature] = frozenset()

    def __init__(self, traits: DeviceTraits) -> None:
        self._traits = traits

    def assess(self, request: MoeRequest) -> Verdict:
        """Always yes."""
        return Yes(Tier.GENERIC, "tokens sorted by expert, two grouped products")

    def build(self, request: MoeRequest, context: BuildContext) -> GroupedMoe:
        """Kernels for the request's shapes; compiled at their first launch."""
        return GroupedMoe(request, self._traits)
