"""Operations against the reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from chiplet.api import BuildContext, Op, OpImpl, OpProvider, OpRequest
from chiplet.reference.ops import REFERENCE_OPS
from chiplet.testing.conformance.tolerance import TORCH_DTYPES, assert_close
from chiplet.testing.conformance.verdict import is_served

_WIDTH = 96
_VOCAB = 1000

# Of random draws, these may differ: a threshold can fall between two roundings of a running sum.
_DIFFERENT_DRAWS = 0.01


def check_op(
    provider: OpProvider, request: OpRequest, context: BuildContext, *, num_rows: int
) -> bool:
    """Whether the provider serves the request; if it does, its result is compared.

    Raises:
        AssertionError: the result is wrong, or an argument was changed.
    """
    if not is_served(provider, request):
        return False
    random = torch.Generator().manual_seed(num_rows * 101 + len(request.op))
    dtype = TORCH_DTYPES[request.dtype]
    arguments = _MAKERS[request.op](num_rows, dtype, random)
    moved = [_moved(each, context.torch_device) for each in arguments]
    before = [each.clone() if isinstance(each, Tensor) else each for each in moved]
    results = _as_tuple(provider.build(request, context)(*moved))
    for argument, old in zip(moved, before, strict=True):
        if isinstance(argument, Tensor):
            assert torch.equal(argument, old), f"{provider.name}: {request.op} changes an argument"
    if request.op is Op.SAMPLE:
        _check_sample_of_nan(provider.build(request, context), context.torch_device)
    reference = REFERENCE_OPS[request.op]
    plain = _as_tuple(reference(*arguments))
    exact = _as_tuple(reference(*map(_widened, arguments)))
    what = f"{provider.name}: {request.op} of {num_rows} rows, {request.dtype}"
    assert len(results) == len(plain), f"{what}: {len(results)} results, expected {len(plain)}"
    for result, same, wide in zip(results, plain, exact, strict=True):
        if same.is_floating_point():
            assert_close(result.cpu(), same, wide, what)
        else:
            _assert_same_ids(result.cpu(), same, what)
    return True


def _check_sample_of_nan(sample: OpImpl, device: torch.device) -> None:
    """A row that a model spoilt gives a token of the vocabulary, and its neighbour is not hurt."""
    logits = torch.zeros(2, _VOCAB, device=device)
    logits[0], logits[1, 7] = torch.nan, 50.0
    ones = torch.ones(2, device=device)
    for top_k in (0, 5):
        limits = torch.full((2,), top_k, dtype=torch.int32, device=device)
        picked = sample(logits, ones, limits, ones, 0 * ones, 0.5 * ones, top_k > 0).tolist()
        assert 0 <= picked[0] < _VOCAB, f"a row of NaN gave token {picked[0]}"
        assert picked[1] == 7, f"beside a row of NaN, token {picked[1]} was picked, expected 7"


def _assert_same_ids(result: Tensor, expected: Tensor, what: str) -> None:
    assert result.dtype == expected.dtype, f"{what}: {result.dtype}, expected {expected.dtype}"
    assert result.shape == expected.shape, f"{what}: {result.shape}, expected {expected.shape}"
    if result.numel():
        different = float((result != expected).double().mean())
        assert different <= _DIFFERENT_DRAWS, f"{what}: {different:.1%} of the tokens differ"


def _feed(n: int, dtype: torch.dtype, random: Generator) -> Sequence[Any]:
    slots = 33
    token_ids = torch.randint(-slots, _VOCAB, (n,), generator=random, dtype=torch.int32)
    token_ids[n // 2] = -slots
    return token_ids, torch.randint(_VOCAB, (slots,), generator=random, dtype=torch.int32)


def _embedding(n: int, dtype: torch.dtype, random: Generator) -> Sequence[Any]:
    table = torch.randn(_VOCAB, _WIDTH, generator=random).to(dtype)
    return torch.randint(_VOCAB, (n,), generator=random, dtype=torch.int32), table


def _norm(n: int, dtype: torch.dtype, random: Generator) -> Sequence[Any]:
    # Rows of very unlike size, one of them all zero.
    x = torch.randn(n, _WIDTH, generator=random) * torch.logspace(-3, 3, n).unsqueeze(1)
    x[n // 2] = 0
    return x.to(dtype), torch.randn(_WIDTH, generator=random).to(dtype), 1e-5


def _add_norm(n: int, dtype: torch.dtype, random: Generator) -> Sequence[Any]:
    x, weight, eps = _norm(n, dtype, random)
    return x, torch.randn(n, _WIDTH, generator=random).to(dtype), weight, eps


def _rotary(n: int, dtype: torch.dtype, random: Generator) -> Sequence[Any]:
    # Queries and keys are views of one tensor, as layers make them.
    num_heads, num_kv_heads, head_dim = 6, 2, 16
    qkv = torch.randn(n, num_heads + 2 * num_kv_heads, head_dim, generator=random).to(dtype)
    angles = torch.arange(512).unsqueeze(1) * torch.logspace(0, -3, head_dim // 2)
    positions = torch.randint(512, (n,), generator=random, dtype=torch.int32)
    cos_sin = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return qkv[:, :num_heads], qkv[:, num_heads : num_heads + num_kv_heads], positions, cos_sin


def _silu_mul(n: int, dtype: torch.dtype, random: Generator) -> Sequence[Any]:
    return ((torch.randn(n, 2 * _WIDTH, generator=random) * 4).to(dtype),)


def _penalize(n: int, dtype: torch.dtype, random: Generator) -> Sequence[Any]:
    counts = torch.randint(-4, 4, (n, _VOCAB), generator=random).clamp(min=0).int()
    return (
        torch.randn(n, _VOCAB, generator=random) * 5,
        torch.rand(n, _VOCAB, generator=random) < 0.2,
        counts,
        torch.rand(n, generator=random) + 0.5,
        torch.randn(n, generator=random),
        torch.randn(n, generator=random),
    )


def _argmax(n: int, dtype: torch.dtype, random: Generator) -> Sequence[Any]:
    """Rows of a wider tensor, with ties; one of them is -infinity but for its last token."""
    logits = (torch.randn(n, _VOCAB + 3, generator=random) * 3).bfloat16().to(dtype)
    logits[n // 2, :-4] = -torch.inf
    return (logits[:, :_VOCAB],)


def _sample(n: int, dtype: torch.dtype, random: Generator) -> Sequence[Any]:
    """Rows of every mixture of filters; logits have few distinct values, so that many tie."""
    logits = (torch.randn(n, _VOCAB, generator=random) * 3).bfloat16().float()

    def among(*values: float) -> Tensor:
        return torch.tensor(values)[torch.randint(len(values), (n,), generator=random)]

    top_k = among(0, 1, 5, 50, 300, _VOCAB, 2 * _VOCAB).int()
    temperature, top_p = among(0.0, 0.5, 1.0, 3.0), among(0.0, 0.1, 0.9, 0.99, 1.0)
    uniform = torch.rand(n, generator=random)
    return logits, temperature, top_k, top_p, among(0.0, 0.05, 0.5), uniform, True


def _top_logprobs(n: int, dtype: torch.dtype, random: Generator) -> Sequence[Any]:
    logits = torch.randn(n, _VOCAB, generator=random) * 3
    return logits, torch.randint(_VOCAB, (n,), generator=random, dtype=torch.int32), 5


_MAKERS: Mapping[Op, Callable[[int, torch.dtype, Generator], Sequence[Any]]] = {
    Op.FEED: _feed,
    Op.EMBEDDING: _embedding,
    Op.RMS_NORM: _norm,
    Op.ADD_RMS_NORM: _add_norm,
    Op.ROTARY: _rotary,
    Op.SILU_MUL: _silu_mul,
    Op.PENALIZE: _penalize,
    Op.ARGMAX: _argmax,
    Op.SAMPLE: _sample,
    Op.TOP_LOGPROBS: _top_logprobs,
}


def _moved(argument: Any, device: torch.device) -> Any:
    # `Tensor.to` keeps strides, so that views stay views on the same device.
    return argument.to(device) if isinstance(argument, Tensor) else argument


def _widened(argument: Any) -> Any:
    is_float = isinstance(argument, Tensor) and argument.is_floating_point()
    return argument.double() if is_float else argument


def _as_tuple(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)
