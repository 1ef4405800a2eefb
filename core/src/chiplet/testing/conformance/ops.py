"""Operations against the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from chiplet.api import BuildContext, Op, OpImpl, OpProvider, OpRequest
from chiplet.reference.ops import REFERENCE_OPS
from chiplet.testing.conformance.op_inputs import OpSize, make_calls
from chiplet.testing.conformance.tolerance import TORCH_DTYPES, assert_close
from chiplet.testing.conformance.verdict import is_served

_VOCAB = 1000

# Of random draws, these may differ: a threshold can fall between two roundings of a running sum.
_DIFFERENT_DRAWS = 0.01


def check_op(
    provider: OpProvider, request: OpRequest, context: BuildContext, *, size: OpSize
) -> bool:
    """Whether the provider serves the request; if it does, its result is compared.

    Raises:
        AssertionError: the result is wrong, or an argument was changed.
    """
    if not is_served(provider, request):
        return False
    run = provider.build(request, context)
    what = f"{provider.name}: {request.op} of {size}, {request.dtype}"
    for arguments in make_calls(request.op, size, TORCH_DTYPES[request.dtype]):
        _check_call(run, request.op, arguments, context.torch_device, what)
    if request.op is Op.SAMPLE:
        _check_sample_of_nan(run, context.torch_device)
    return True


def _check_call(
    run: OpImpl, op: Op, arguments: Sequence[Any], device: torch.device, what: str
) -> None:
    moved = [_moved(each, device) for each in arguments]
    before = [each.clone() if isinstance(each, Tensor) else each for each in moved]
    results = _as_tuple(run(*moved))
    for argument, old in zip(moved, before, strict=True):
        if isinstance(argument, Tensor):
            assert _is_same(argument, old), f"{what}: changes an argument"
    reference = REFERENCE_OPS[op]
    plain = _as_tuple(reference(*arguments))
    exact = _as_tuple(reference(*map(_widened, arguments)))
    assert len(results) == len(plain), f"{what}: {len(results)} results, expected {len(plain)}"
    for result, same, wide in zip(results, plain, exact, strict=True):
        if same.is_floating_point():
            _assert_close(result.cpu(), same, wide, what)
        else:
            _assert_same_ids(result.cpu(), same, what)


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


def _is_same(one: Tensor, other: Tensor) -> bool:
    """Whether all values are equal, or no numbers in both."""
    return bool(((one == other) | ((one != one) & (other != other))).all())


def _assert_close(result: Tensor, plain: Tensor, exact: Tensor, what: str) -> None:
    """As `assert_close`; what is infinite must be the same infinity."""
    is_infinite = plain.isinf()
    if result.shape == plain.shape and is_infinite.any():
        differs = bool((result[is_infinite] != plain[is_infinite]).any())
        assert not differs, f"{what}: not infinite where it must be"
        result, plain, exact = (each.masked_fill(is_infinite, 0) for each in (result, plain, exact))
    assert_close(result, plain, exact, what)


def _assert_same_ids(result: Tensor, expected: Tensor, what: str) -> None:
    assert result.dtype == expected.dtype, f"{what}: {result.dtype}, expected {expected.dtype}"
    assert result.shape == expected.shape, f"{what}: {result.shape}, expected {expected.shape}"
    if result.numel():
        different = float((result != expected).double().mean())
        assert different <= _DIFFERENT_DRAWS, f"{what}: {different:.1%} of the tokens differ"


def _moved(argument: Any, device: torch.device) -> Any:
    # `Tensor.to` keeps strides, so that views stay views on the same device.
    return argument.to(device) if isinstance(argument, Tensor) else argument


def _widened(argument: Any) -> Any:
    is_float = isinstance(argument, Tensor) and argument.is_floating_point()
    return argument.double() if is_float else argument


def _as_tuple(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)
