"""Arguments of every operation, in any size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from chiplet.api import Op

_PEAKED_FROM = 10_000
"""Over larger vocabularies few tokens have nearly all the mass, as in a model: were it spread, the
roundings of the running sum alone would decide what is drawn."""


@dataclass(frozen=True, slots=True)
class OpSize:
    """How large a call is; an operation looks at what concerns it.

    Attributes:
        num_rows: tokens, or requests.
        width: of a row that a model computes with; of each half of a gated one.
        vocab: tokens that the model knows.
        heads: query heads, key heads and the dimension of each.
    """

    num_rows: int
    width: int = 96
    vocab: int = 1000
    heads: tuple[int, int, int] = (6, 2, 16)


def make_calls(op: Op, size: OpSize, dtype: torch.dtype) -> Sequence[Sequence[Any]]:
    """Arguments of one call or more, in main memory, the same ones each time."""
    random = torch.Generator().manual_seed(size.num_rows * 101 + len(op))
    arguments = _MAKERS[op](size, dtype, random)
    return (arguments, _unfiltered(*arguments)) if op is Op.SAMPLE else (arguments,)


def _feed(size: OpSize, dtype: torch.dtype, random: Generator) -> Sequence[Any]:
    slots, n = 33, size.num_rows
    token_ids = torch.randint(-slots, size.vocab, (n,), generator=random, dtype=torch.int32)
    token_ids[n // 2] = -slots
    return token_ids, torch.randint(size.vocab, (slots,), generator=random, dtype=torch.int32)


def _embedding(size: OpSize, dtype: torch.dtype, random: Generator) -> Sequence[Any]:
    table = torch.randn(size.vocab, size.width, generator=random).to(dtype)
    token_ids = torch.randint(size.vocab, (size.num_rows,), generator=random, dtype=torch.int32)
    token_ids[-1] = size.vocab - 1
    return token_ids, table


def _norm(size: OpSize, dtype: torch.dtype, random: Generator) -> Sequence[Any]:
    # Rows of very unlike size, one of them all zero.
    n = size.num_rows
    x = torch.randn(n, size.width, generator=random) * torch.logspace(-3, 3, n).unsqueeze(1)
    x[n // 2] = 0
    return x.to(dtype), torch.randn(size.width, generator=random).to(dtype), 1e-5


def _add_norm(size: OpSize, dtype: torch.dtype, random: Generator) -> Sequence[Any]:
    x, weight, eps = _norm(size, dtype, random)
    return x, torch.randn(x.shape, generator=random).to(dtype), weight, eps


def _rotary(size: OpSize, dtype: torch.dtype, random: Generator) -> Sequence[Any]:
    # Queries and keys are views of one tensor, as layers make them.
    (num_heads, num_kv_heads, head_dim), n = size.heads, size.num_rows
    qkv = torch.randn(n, num_heads + 2 * num_kv_heads, head_dim, generator=random).to(dtype)
    angles = torch.arange(512).unsqueeze(1) * torch.logspace(0, -3, head_dim // 2)
    positions = torch.randint(512, (n,), generator=random, dtype=torch.int32)
    cos_sin = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return qkv[:, :num_heads], qkv[:, num_heads : num_heads + num_kv_heads], positions, cos_sin


def _silu_mul(size: OpSize, dtype: torch.dtype, random: Generator) -> Sequence[Any]:
    return ((torch.randn(size.num_rows, 2 * size.width, generator=random) * 4).to(dtype),)


def _penalize(size: OpSize, dtype: torch.dtype, random: Generator) -> Sequence[Any]:
    n, shape = size.num_rows, (size.num_rows, size.vocab)
    counts = torch.randint(-4, 4, shape, generator=random).clamp(min=0).int()
    return (
        torch.randn(shape, generator=random) * 5,
        torch.rand(shape, generator=random) < 0.2,
        counts,
        torch.rand(n, generator=random) + 0.5,
        torch.randn(n, generator=random),
        torch.randn(n, generator=random),
    )


def _mask_tokens(size: OpSize, dtype: torch.dtype, random: Generator) -> Sequence[Any]:
    """Rows of wider tensors: one forbids all, one nothing, and what is forbidden may be NaN."""
    n, num_words = size.num_rows, -(-size.vocab // 32)
    logits = torch.randn(n, size.vocab + 3, generator=random) * 3
    shape = (n, num_words + 1)
    mask = torch.randint(-(2**31), 2**31, shape, generator=random, dtype=torch.int32)
    mask[n // 2] = -1
    mask[n // 2, -2:] = 2**31 - 1  # all but one bit, that of the sign
    mask[n // 3] = 0
    mask[-1, 0] &= ~1
    logits[-1, 0] = torch.nan
    return logits[:, : size.vocab], mask[:, :num_words]


def _argmax(size: OpSize, dtype: torch.dtype, random: Generator) -> Sequence[Any]:
    """Rows of a wider tensor, with ties; one of them is -infinity but for its last token."""
    logits = torch.randn(size.num_rows, size.vocab + 3, generator=random) * 3
    logits = logits.bfloat16().to(dtype)
    logits[size.num_rows // 2, : size.vocab - 1] = -torch.inf
    return (logits[:, : size.vocab],)


def _sample(size: OpSize, dtype: torch.dtype, random: Generator) -> Sequence[Any]:
    """Rows of every mixture of filters; logits have few distinct values, so that many tie."""
    n, vocab = size.num_rows, size.vocab
    scale = 3 if vocab < _PEAKED_FROM else 30
    logits = (torch.randn(n, vocab, generator=random) * scale).bfloat16().float()

    def among(*values: float) -> Tensor:
        return torch.tensor(values)[torch.randint(len(values), (n,), generator=random)]

    top_k = among(0, 1, 5, 50, 300, vocab, 2 * vocab).int()
    temperature, top_p = among(0.0, 0.5, 1.0, 3.0), among(0.0, 0.1, 0.9, 0.99, 1.0)
    uniform = torch.rand(n, generator=random)
    return logits, temperature, top_k, top_p, among(0.0, 0.05, 0.5), uniform, True


def _unfiltered(logits: Tensor, temperature: Tensor, *rest: Any) -> Sequence[Any]:
    """The same draws when no row has a filter: implementations may then go another way."""
    _, _, _, uniform, _ = rest
    ones = torch.ones_like(temperature)
    return (
        logits,
        temperature,
        torch.zeros_like(ones, dtype=torch.int32),
        ones,
        0 * ones,
        uniform,
        False,
    )


def _top_logprobs(size: OpSize, dtype: torch.dtype, random: Generator) -> Sequence[Any]:
    logits = torch.randn(size.num_rows, size.vocab, generator=random) * 3
    chosen = torch.randint(size.vocab, (size.num_rows,), generator=random, dtype=torch.int32)
    return logits, chosen, min(5, size.vocab)


_MAKERS: Mapping[Op, Callable[[OpSize, torch.dtype, Generator], Sequence[Any]]] = {
    Op.FEED: _feed,
    Op.EMBEDDING: _embedding,
    Op.RMS_NORM: _norm,
    Op.ADD_RMS_NORM: _add_norm,
    Op.ROTARY: _rotary,
    Op.SILU_MUL: _silu_mul,
    Op.PENALIZE: _penalize,
    Op.MASK_TOKENS: _mask_tokens,
    Op.ARGMAX: _argmax,
    Op.SAMPLE: _sample,
    Op.TOP_LOGPROBS: _top_logprobs,
}
