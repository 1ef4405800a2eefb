"""Sampling without sorting the vocabulary.

Top-k, top-p and min-p keep a prefix of the tokens in order of likelihood. The prefix is sought
among the likeliest few hundred, then few thousand, and only for a row whose prefix does not end
there among all. Ties are kept in vocabulary order, as in a stable sort.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

# How many of the likeliest tokens are looked at, in turn. Fixed, so that the sums of a row do not
# depend on the rows beside it.
_TIERS = (256, 4096)

# Rows worked on together. Few, so that intermediate results fit into memory just freed: fresh
# memory for 64 rows of 49,152 costs several times the arithmetic.
_ROWS = 8

# Tokens summed before the running sum over the vocabulary; that is slow token by token.
_RUN = 128


class _Filters(NamedTuple):
    """Settings of rows, all `[n]`; tokens' logits are divided by temperature already."""

    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    uniform: Tensor

    def select(self, rows: Tensor) -> _Filters:
        return _Filters(*(each.index_select(0, rows) for each in self))


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
    if is_greedy.all():
        return logits.argmax(dim=-1).int()
    is_filtered = torch.zeros_like(is_greedy)
    if has_filters:
        is_filtered = ~is_greedy & ((top_k > 0) | (top_p < 1) | (min_p > 0))
    filters = _Filters(top_k, top_p, min_p, uniform)
    picked = torch.empty(len(logits), dtype=torch.int64)
    for rows in _parts(is_greedy):
        picked[rows] = logits.index_select(0, rows).argmax(dim=-1)
    for rows in _parts(~is_greedy & ~is_filtered):
        scaled = logits.index_select(0, rows).div_(temperature[rows].unsqueeze(1))
        picked[rows] = _pick_among_all(torch.softmax(scaled, dim=-1), uniform[rows])
    for rows in _parts(is_filtered):
        scaled = logits.index_select(0, rows).div_(temperature[rows].unsqueeze(1))
        picked[rows] = _sample_filtered(scaled, filters.select(rows))
    return picked.clamp_(max=logits.shape[1] - 1).int()


def _parts(is_chosen: Tensor) -> tuple[Tensor, ...]:
    """Indices of chosen rows, a few at a time."""
    rows = is_chosen.nonzero().squeeze(1)
    return rows.split(_ROWS) if len(rows) else ()


def _sample_filtered(scaled: Tensor, filters: _Filters) -> Tensor:
    """Tokens of rows that use a filter, `[n] int64`."""
    vocab_size = scaled.shape[1]
    picked = torch.empty(len(scaled), dtype=torch.int64)
    left = torch.arange(len(scaled))
    for tier in (*(each for each in _TIERS if each < vocab_size), vocab_size):
        picked[left], is_settled = _sample_among(scaled, filters, tier)
        unsettled = (~is_settled).nonzero().squeeze(1)
        if not len(unsettled):
            break
        left = left[unsettled]
        scaled, filters = scaled.index_select(0, unsettled), filters.select(unsettled)
    return picked


def _sample_among(scaled: Tensor, filters: _Filters, count: int) -> tuple[Tensor, Tensor]:
    """Tokens found among each row's `count` likeliest, and whether they are right.

    Shapes: both `[n]`. A token is right if top-k keeps no more than were looked at, and the last
    one kept is likelier than the last one looked at: then all that tie with it were looked at too.
    """
    values, ids = _likeliest(scaled, count)
    limit = torch.where(filters.top_k == 0, scaled.shape[1], filters.top_k).unsqueeze(1)
    is_kept = torch.arange(count) < limit
    # With top-k the mass is that of what top-k keeps, otherwise that of the whole row.
    mass = torch.logsumexp(values.masked_fill(~is_kept, -torch.inf), dim=-1)
    is_limited = limit.squeeze(1) <= count
    if not is_limited.all():
        mass = torch.where(is_limited, mass, torch.logsumexp(scaled, dim=-1))
    probs = torch.exp(values - mass.unsqueeze(1)).masked_fill(~is_kept, 0)
    top_p = filters.top_p.unsqueeze(1)
    is_kept &= (probs.cumsum(dim=-1) - probs < top_p) | (top_p >= 1)
    is_kept &= probs >= filters.min_p.unsqueeze(1) * probs[:, :1]
    is_kept[:, 0] = True  # whatever rounding does to a tiny top_p
    last_kept = values.gather(1, is_kept.sum(dim=-1, keepdim=True) - 1).squeeze(1)
    is_settled = (last_kept > values[:, -1]) & ((filters.top_k <= count) | (filters.top_k == 0))
    ids, order = ids.sort(dim=-1)
    kept = probs.masked_fill(~is_kept, 0).gather(1, order)
    return ids.gather(1, _pick(kept, filters.uniform).unsqueeze(1)).squeeze(1), is_settled


def _likeliest(scaled: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Values and ids of each row's likeliest tokens, likeliest first, ties by id."""
    if count == scaled.shape[1]:
        values, ids = scaled.sort(dim=-1, descending=True, stable=True)
        return values, ids
    ids = scaled.topk(count, dim=-1, sorted=False).indices.sort(dim=-1).values
    values, order = scaled.gather(1, ids).sort(dim=-1, descending=True, stable=True)
    return values, ids.gather(1, order)


def _pick(weights: Tensor, uniform: Tensor) -> Tensor:
    """Where the running sum of a row's weights first exceeds `uniform` times their total."""
    # float64, because a running sum over a large vocabulary loses small tokens in float32.
    running = weights.double().cumsum(dim=-1)
    threshold = uniform.double().unsqueeze(1) * running[:, -1:]
    # A row of NaN finds nothing; any token is better than one outside the vocabulary.
    picked = torch.searchsorted(running, threshold, right=True).squeeze(1)
    return picked.clamp_(max=weights.shape[1] - 1)


def _pick_among_all(probs: Tensor, uniform: Tensor) -> Tensor:
    """What `_pick` gives, in two steps: the run of tokens first, then the token in it."""
    num_rows, vocab_size = probs.shape
    padding = -vocab_size % _RUN
    runs = F.pad(probs, (0, padding)).view(num_rows, -1, _RUN)
    running = runs.sum(dim=-1, dtype=torch.float64).cumsum(dim=-1)
    threshold = uniform.double().unsqueeze(1) * running[:, -1:]
    run = torch.searchsorted(running, threshold, right=True).clamp_(max=runs.shape[1] - 1)
    before = F.pad(running, (1, 0)).gather(1, run)
    within = runs[torch.arange(num_rows), run.squeeze(1)].double().cumsum(dim=-1)
    # Two roundings of one sum: what is left must not lie past the end of the run.
    left = torch.minimum(
        threshold - before, torch.nextafter(within[:, -1:], threshold.new_zeros(1))
    )
    token = torch.searchsorted(within, left, right=True)
    return (run * _RUN + token).squeeze(1)
