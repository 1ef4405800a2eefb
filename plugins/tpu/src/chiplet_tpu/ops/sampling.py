"""Sampling in float32: running sums in two levels, so that small tokens are not lost.

A running sum over a vocabulary loses small tokens in float32. Summed in runs of some hundred
tokens, and then over the runs, the error stays that of a few hundred additions.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from chiplet.api import BuildContext, No, Op, OpImpl, OpRequest, Tier, Verdict, Yes

_RUN = 256


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    uniform: Tensor,
    has_filters: bool,
) -> Tensor:
    """One token per row; see `chiplet.api.ops.Sample`."""
    is_greedy = temperature == 0
    scaled = logits / torch.where(is_greedy, 1.0, temperature).unsqueeze(1)
    weights = torch.softmax(scaled, dim=-1)
    if has_filters:
        weights = torch.where(_kept(scaled, top_k, top_p, min_p), weights, 0.0)
    picked = _pick(weights, uniform)
    return torch.where(is_greedy, logits.argmax(dim=-1), picked).int()


def _kept(scaled: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """Tokens that pass the filters, `[n, vocab] bool`."""
    vocab_size = scaled.shape[1]
    ordered, order = scaled.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(vocab_size, dtype=torch.int32, device=scaled.device)
    limit = torch.where(top_k == 0, vocab_size, top_k).unsqueeze(1)
    is_kept = rank < limit
    probs = torch.softmax(torch.where(is_kept, ordered, -torch.inf), dim=-1)
    mass_before = _running(probs) - probs
    # top_p of 1 keeps everything, whatever rounding does to the running sum.
    is_kept = is_kept & ((mass_before < top_p.unsqueeze(1)) | (top_p.unsqueeze(1) >= 1))
    is_kept = is_kept & (probs >= min_p.unsqueeze(1) * probs[:, :1])
    is_kept = is_kept | (rank == 0)  # whatever rounding does to a tiny top_p
    return torch.zeros_like(is_kept).scatter(1, order, is_kept)


def _running(weights: Tensor) -> Tensor:
    """Running sum of each row. Shapes: weights and result `[n, vocab]`."""
    vocab_size = weights.shape[1]
    runs = F.pad(weights, (0, -vocab_size % _RUN)).unflatten(1, (-1, _RUN))
    within = runs.cumsum(dim=-1)
    totals = within[..., -1]
    before = totals.cumsum(dim=-1) - totals
    return (within + before.unsqueeze(-1)).flatten(1)[:, :vocab_size]


def _pick(weights: Tensor, uniform: Tensor) -> Tensor:
    """Where the running sum of a row's weights first exceeds `uniform` times their total.

    Only tokens of some weight are picked, whatever rounding does. Shapes: `[n]`.
    """
    running = _running(weights)
    threshold = uniform.unsqueeze(1) * running[:, -1:]
    is_past = (running > threshold) & (weights > 0)
    # The last token of some weight, where rounding leaves the threshold past all of them.
    places = torch.arange(weights.shape[1], dtype=torch.int32, device=weights.device)
    last = torch.where(weights > 0, places, 0).amax(dim=-1)
    return torch.where(is_past.any(dim=-1), is_past.int().argmax(dim=-1), last)


class TwoLevelSamplingProvider:
    """Serves sampling where there is no float64."""

    name = "two-level"
    accepts = frozenset()

    def assess(self, request: OpRequest) -> Verdict:
        """Yes to sampling."""
        if request.op is not Op.SAMPLE:
            return No.because("op", f"serves {Op.SAMPLE} only, not {request.op}")
        return Yes(Tier.VENDOR, "running sums in two levels of float32")

    def build(self, request: OpRequest, context: BuildContext) -> OpImpl:
        """The function."""
        return sample
