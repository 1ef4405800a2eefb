"""Experts one after another, each on the tokens that picked it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from chiplet.api import BuildContext, ExpertWeights, Feature, MoeRequest, Tier, Verdict, Yes


class GroupedMoe:
    """Tokens are sorted by expert, so that each expert is one product over its own."""

    def __init__(self, request: MoeRequest) -> None:
        self._top_k = request.top_k
        self._renormalize = request.renormalize

    def pack(self, weights: ExpertWeights) -> ExpertWeights:
        """Keeps both tensors."""
        return weights

    def run(self, x: Tensor, router_logits: Tensor, packed: ExpertWeights) -> Tensor:
        """The weighted sum; see `chiplet.api.MoeImpl.run`."""
        probs = torch.softmax(router_logits.float(), dim=-1)
        weights, expert_ids = probs.topk(self._top_k, dim=-1)
        if self._renormalize:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        order = expert_ids.flatten().argsort()
        tokens = order // self._top_k
        counts = torch.bincount(expert_ids.flatten(), minlength=probs.shape[1]).tolist()
        total = torch.zeros(x.shape, dtype=torch.float32)
        start = 0
        for expert, count in enumerate(counts):
            if not count:
                continue
            rows = slice(start, start + count)
            start += count
            gate, up = F.linear(x[tokens[rows]], packed.gate_up[expert]).chunk(2, dim=-1)
            y = F.linear(F.silu(gate).mul_(up), packed.down[expert]).float()
            total.index_add_(0, tokens[rows], y * weights.flatten()[order[rows]].unsqueeze(1))
        return total.to(x.dtype)


class GroupedMoeProvider:
    """Serves every mixture that torch multiplies on a CPU."""

    name = "torch"
    accepts: frozenset[Feature] = frozenset()

    def assess(self, request: MoeRequest) -> Verdict:
        """Always yes."""
        return Yes(Tier.GENERIC, "tokens sorted by expert")

    def build(self, request: MoeRequest, context: BuildContext) -> GroupedMoe:
        """The grouped products."""
        return GroupedMoe(request)
