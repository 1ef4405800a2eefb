"""SparseMlp: the feed-forward half of a layer with a mixture of experts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from chiplet.api import LinearWeights, MoeRequest, Packed
from chiplet.config import ExpertsConfig
from chiplet.layers.context import LayerContext, torch_dtype
from chiplet.layers.linear import Linear
from chiplet.layers.raw_experts import RawExperts, expert_scheme
from chiplet.layers.weights import Shape, Weight
from chiplet.parallel.sharding import cut_evenly
from chiplet.reference.quantization import dequantize_to


class SparseMlp:
    """A router, and the experts that it picks for each token."""

    def __init__(self, context: LayerContext, *, hidden_size: int, experts: ExpertsConfig) -> None:
        self.router = Linear(
            context,
            "router",
            in_features=hidden_size,
            parts={"gate": experts.num_experts},
        )
        self.experts = Experts(context, hidden_size=hidden_size, experts=experts)
        self._scale = experts.scale
        self._num_groups, self._num_kept = experts.num_groups, experts.num_kept_groups

    def __call__(self, x: Tensor) -> Tensor:
        """Shapes: x and result `[num_tokens, hidden_size]`."""
        logits = self.router(x)
        if self._num_kept < self._num_groups:
            logits, share = within_groups(logits, self._num_groups, self._num_kept)
            return self.experts(x, logits) * (share * self._scale).to(x.dtype)
        y = self.experts(x, logits)
        return y if self._scale == 1 else y * self._scale


def within_groups(logits: Tensor, num_groups: int, num_kept: int) -> tuple[Tensor, Tensor]:
    """Logits that leave experts of some groups only, and the probability that these have together.

    What experts do with the logits is a softmax among those that are left; times that probability,
    it is what a softmax among all would give them. Source: arXiv:2405.04434, section 2.2.2.

    Shapes: logits and the first result `[num_tokens, num_experts]`; the second
    `[num_tokens, 1]`, float32 or wider.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    groups = wide.unflatten(1, (num_groups, -1))
    best = groups.amax(dim=2)
    kept = best.topk(num_kept, dim=1).indices
    is_kept = torch.zeros_like(best, dtype=torch.bool).scatter(1, kept, value=True)
    left = groups.masked_fill(~is_kept.unsqueeze(2), -torch.inf).flatten(1)
    share = (left.logsumexp(1, keepdim=True) - wide.logsumexp(1, keepdim=True)).exp()
    # A number, so that no implementation meets infinity.
    return left.clamp(min=torch.finfo(logits.dtype).min).to(logits.dtype), share


class Experts:
    """All experts of a layer; each rank holds a slice of every one's middle.

    Parts are 'INDEX.gate', 'INDEX.up' and 'INDEX.down'.
    """

    def __init__(self, context: LayerContext, *, hidden_size: int, experts: ExpertsConfig) -> None:
        self._ranks = ranks = context.ranks
        self._context = context
        width, num = experts.intermediate_size, experts.num_experts
        self._cut_out = cut_evenly(width, ranks.size, "expert outputs", dim=0)
        self._cut_in = cut_evenly(width, ranks.size, "expert inputs", dim=1)
        self._width = self._cut_out.width
        request = MoeRequest(
            hidden_size=hidden_size,
            intermediate_size=self._width,
            num_experts=num,
            top_k=experts.top_k,
            renormalize=experts.renormalize,
            dtype=context.dtype,
            scheme=expert_scheme(context, hidden_size, self._width),
        )
        self._request = request
        self._impl = context.bindings.moe(request)
        self._run = self._impl.run
        self._packed: Packed = None
        self.part_shapes: Mapping[str, Shape] = {
            f"{index}.{name}": shape
            for index in range(num)
            for name, shape in (
                ("gate", (width, hidden_size)),
                ("up", (width, hidden_size)),
                ("down", (hidden_size, width)),
            )
        }
        self._missing = set(self.part_shapes)
        self._raw: list[RawExperts] = []

    def __call__(self, x: Tensor, router_logits: Tensor) -> Tensor:
        """Shapes: x and result `[num_tokens, hidden_size]`; router_logits
        `[num_tokens, num_experts]`.
        """
        y = self._run(x, router_logits, self._packed)
        return self._ranks.all_reduce(y) if self._ranks.is_shared else y

    def load(self, part: str, weight: Weight) -> None:
        """Take one part; pack after the last."""
        if not self._raw:
            self._raw = [RawExperts(self._request, self._context) for _ in self._ranks.local_ranks]
        if isinstance(weight, LinearWeights):
            weight = dequantize_to(weight, torch_dtype(self._context.dtype))
        index, _, name = part.partition(".")
        cut = self._cut_in if name == "down" else self._cut_out
        for rank, raw in zip(self._ranks.local_ranks, self._raw, strict=True):
            raw.put(int(index), name, cut.take(weight, rank))
        self._missing.discard(part)
        if not self._missing:
            packed = [self._impl.pack(raw.weights()) for raw in self._raw]
            self._packed = self._ranks.join(packed)
            self._raw = []

    def adopt(self, other: Experts) -> bool:
        """Take over packed weights, if the same implementation packed them."""
        if self._impl is not other._impl:
            return False
        self._packed = other._packed
        return True
