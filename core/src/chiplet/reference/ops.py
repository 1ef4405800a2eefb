"""Reference operations: plain torch, correct first.

They also serve as oracle in float64: whatever the protocol calls float32 is computed in the wider
of float32 and the input's own type.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from chiplet.api import BuildContext, Feature, Op, OpImpl, OpRequest, Tier, Verdict, Yes


def feed(token_ids: Tensor, last_tokens: Tensor) -> Tensor:
    """Token ids with those of slots looked up; see `chiplet.api.ops.Feed`."""
    slots = (-1 - token_ids).clamp(min=0)
    return torch.where(token_ids < 0, last_tokens[slots], token_ids)


def embedding(token_ids: Tensor, table: Tensor) -> Tensor:
    """Rows of a table; see `chiplet.api.ops.Embedding`."""
    return F.embedding(token_ids, table)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm; see `chiplet.api.ops.RmsNorm`."""
    wide = x.to(_wide(x))
    inverse = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (wide * inverse * weight.to(wide.dtype)).to(x.dtype)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """A residual sum and its norm; see `chiplet.api.ops.AddRmsNorm`."""
    total = x + residual
    return rms_norm(total, weight, eps), total


def rotary(q: Tensor, k: Tensor, positions: Tensor, cos_sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotation by position; see `chiplet.api.ops.Rotary`."""
    rows = cos_sin[positions.long()].unsqueeze(1)  # [n, 1, head_dim]
    cos, sin = rows.chunk(2, dim=-1)
    return _rotate(q, cos, sin), _rotate(k, cos, sin)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    wide = _wide(x)
    first, second = x.to(wide).chunk(2, dim=-1)
    rotated = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return rotated.to(x.dtype)


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up; see `chiplet.api.ops.SiluMul`."""
    gate, up = gate_up.to(_wide(gate_up)).chunk(2, dim=-1)
    return (F.silu(gate) * up).to(gate_up.dtype)


def penalize(
    logits: Tensor,
    is_in_prompt: Tensor,
    output_counts: Tensor,
    repetition: Tensor,
    presence: Tensor,
    frequency: Tensor,
) -> Tensor:
    """Penalties for tokens that have occurred; see `chiplet.api.ops.Penalize`."""
    is_in_output = output_counts > 0
    factor = repetition.unsqueeze(1)
    repeated = torch.where(logits > 0, logits / factor, logits * factor)
    result = torch.where(is_in_prompt | is_in_output, repeated, logits)
    result = result - presence.unsqueeze(1) * is_in_output
    return result - frequency.unsqueeze(1) * output_counts


def mask_tokens(logits: Tensor, mask: Tensor) -> Tensor:
    """Forbids tokens by packed bits; see `chiplet.api.ops.MaskTokens`."""
    places = torch.arange(32, dtype=torch.int32, device=mask.device)
    is_allowed = (mask.unsqueeze(2) >> places) & 1  # [n, words, 32]
    is_forbidden = is_allowed.flatten(1)[:, : logits.shape[1]] == 0
    return logits.masked_fill(is_forbidden, -torch.inf)


def argmax(logits: Tensor) -> Tensor:
    """The likeliest token of each row; see `chiplet.api.ops.Argmax`."""
    return logits.argmax(dim=-1).int()


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
    if has_filters:
        scaled = scaled.masked_fill(~_kept(scaled, top_k, top_p, min_p), -torch.inf)
    # float64, because a running sum over a large vocabulary loses small tokens in float32.
    running = torch.softmax(scaled, dim=-1).double().cumsum(dim=-1)
    threshold = uniform.double().unsqueeze(1) * running[:, -1:]
    picked = torch.searchsorted(running, threshold, right=True).squeeze(1)
    # A row of NaN finds nothing; any token is better than one outside the vocabulary.
    picked = picked.clamp(max=logits.shape[1] - 1)
    return torch.where(is_greedy, logits.argmax(dim=-1), picked).int()


def _kept(scaled: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """Tokens that pass the filters, `[n, vocab] bool`."""
    ordered, order = scaled.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(scaled.shape[1], device=scaled.device)
    limit = torch.where(top_k == 0, scaled.shape[1], top_k).unsqueeze(1)
    is_kept = rank < limit
    probs = torch.softmax(ordered.masked_fill(~is_kept, -torch.inf), dim=-1)
    mass_before = probs.cumsum(dim=-1) - probs
    # top_p of 1 keeps everything, whatever rounding does to the running sum.
    is_kept &= (mass_before < top_p.unsqueeze(1)) | (top_p.unsqueeze(1) >= 1)
    is_kept &= probs >= min_p.unsqueeze(1) * probs[:, :1]
    is_kept[:, 0] = True  # whatever rounding does to a tiny top_p
    return torch.zeros_like(is_kept).scatter(1, order, is_kept)


def top_logprobs(logits: Tensor, chosen: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of chosen and likeliest tokens; see `chiplet.api.ops.TopLogprobs`."""
    logprobs = torch.log_softmax(logits, dim=-1)
    chosen_logprobs = logprobs.gather(1, chosen.long().unsqueeze(1)).squeeze(1)
    top, top_ids = logprobs.topk(k, dim=-1)
    return chosen_logprobs, top_ids.int(), top


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


REFERENCE_OPS: Mapping[Op, OpImpl] = {
    Op.FEED: feed,
    Op.EMBEDDING: embedding,
    Op.RMS_NORM: rms_norm,
    Op.ADD_RMS_NORM: add_rms_norm,
    Op.ROTARY: rotary,
    Op.SILU_MUL: silu_mul,
    Op.PENALIZE: penalize,
    Op.MASK_TOKENS: mask_tokens,
    Op.ARGMAX: argmax,
    Op.SAMPLE: sample,
    Op.TOP_LOGPROBS: top_logprobs,
}
"""Every operation's reference."""


class ReferenceOps:
    """Serves every operation on any device that torch serves."""

    name = "reference"
    accepts = frozenset(Feature)

    def assess(self, request: OpRequest) -> Verdict:
        """Always yes, with the lowest score."""
        return Yes(Tier.REFERENCE)

    def build(self, request: OpRequest, context: BuildContext) -> OpImpl:
        """The plain function."""
        return REFERENCE_OPS[request.op]
