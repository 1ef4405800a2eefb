"""Small arguments for each operation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from chiplet.api import Op, OpRequest
from chiplet.layers.context import torch_dtype

_ROWS = 7
_WIDTH = 128
_VOCAB = 1000
_HEAD_DIM = 64

_Maker = Callable[[torch.dtype, Generator], Sequence[Any]]


def op_arguments(request: OpRequest, device: torch.device) -> Sequence[Any]:
    """Arguments of one call, always the same."""
    random = torch.Generator().manual_seed(1)
    made = MAKERS[request.op](torch_dtype(request.dtype), random)
    return [each.to(device) if isinstance(each, Tensor) else each for each in made]


def _feed(dtype: torch.dtype, random: Generator) -> Sequence[Any]:
    return _ids(_VOCAB, random) - _VOCAB // 2, _ids(_VOCAB, random).repeat(_VOCAB)


def _embedding(dtype: torch.dtype, random: Generator) -> Sequence[Any]:
    return _ids(_VOCAB, random), torch.randn(_VOCAB, _WIDTH, generator=random).to(dtype)


def _rms_norm(dtype: torch.dtype, random: Generator) -> Sequence[Any]:
    return _rows(dtype, random), torch.randn(_WIDTH, generator=random).to(dtype), 1e-5


def _add_rms_norm(dtype: torch.dtype, random: Generator) -> Sequence[Any]:
    return _rows(dtype, random), *_rms_norm(dtype, random)


def _rotary(dtype: torch.dtype, random: Generator) -> Sequence[Any]:
    qkv = torch.randn(_ROWS, 8, _HEAD_DIM, generator=random).to(dtype)
    angles = torch.arange(512).unsqueeze(1) * torch.logspace(0, -3, _HEAD_DIM // 2)
    cos_sin = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return qkv[:, :4], qkv[:, 4:6], _ids(512, random), cos_sin


def _silu_mul(dtype: torch.dtype, random: Generator) -> Sequence[Any]:
    return (torch.cat([_rows(dtype, random), _rows(dtype, random)], dim=1),)


def _penalize(dtype: torch.dtype, random: Generator) -> Sequence[Any]:
    counts = torch.randint(-4, 4, (_ROWS, _VOCAB), generator=random).clamp(min=0).int()
    factors = (torch.rand(_ROWS, generator=random) + 0.5 for _ in range(3))
    return _logits(random), torch.rand(_ROWS, _VOCAB, generator=random) < 0.2, counts, *factors


def _mask_tokens(dtype: torch.dtype, random: Generator) -> Sequence[Any]:
    shape = (_ROWS, -(-_VOCAB // 32))
    mask = torch.randint(-(2**31), 2**31, shape, generator=random, dtype=torch.int32)
    return _logits(random), mask


def _argmax(dtype: torch.dtype, random: Generator) -> Sequence[Any]:
    return (_logits(random).to(dtype),)


def _sample(dtype: torch.dtype, random: Generator) -> Sequence[Any]:
    # Every other row takes the likeliest token; none has a threshold on the edge.
    temperature = torch.tensor([0.0, 1.0]).repeat(_ROWS)[:_ROWS]
    top_k = torch.full((_ROWS,), 50, dtype=torch.int32)
    ones = torch.ones(_ROWS)
    uniform = torch.rand(_ROWS, generator=random)
    return _logits(random), temperature, top_k, 0.9 * ones, 0 * ones, uniform, True


def _top_logprobs(dtype: torch.dtype, random: Generator) -> Sequence[Any]:
    return _logits(random), _ids(_VOCAB, random), 5


def _ids(limit: int, random: Generator) -> Tensor:
    return torch.randint(limit, (_ROWS,), generator=random, dtype=torch.int32)


def _rows(dtype: torch.dtype, random: Generator) -> Tensor:
    return torch.randn(_ROWS, _WIDTH, generator=random).to(dtype)


def _logits(random: Generator) -> Tensor:
    return torch.randn(_ROWS, _VOCAB, generator=random) * 3


MAKERS: Mapping[Op, _Maker] = {
    Op.FEED: _feed,
    Op.EMBEDDING: _embedding,
    Op.RMS_NORM: _rms_norm,
    Op.ADD_RMS_NORM: _add_rms_norm,
    Op.ROTARY: _rotary,
    Op.SILU_MUL: _silu_mul,
    Op.PENALIZE: _penalize,
    Op.MASK_TOKENS: _mask_tokens,
    Op.ARGMAX: _argmax,
    Op.SAMPLE: _sample,
    Op.TOP_LOGPROBS: _top_logprobs,
}
"""Arguments of every operation."""
