"""Every case of linear layers: shapes x types x numbers of tokens, bias, schemes and placement."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product

from chiplet.api import Dtype, LinearRequest, WeightScheme
from chiplet.testing.conformance.case import Case, Subject, require_served
from chiplet.testing.conformance.guards import Placement
from chiplet.testing.conformance.linear import check_linear, check_sliced_linear
from chiplet.testing.conformance.schemes import WEIGHT_SCHEMES

SHAPES = ((64, 96), (100, 33), (1, 1), (576, 1536), (192, 64), (8, 4096), (4096, 8))
"""Inputs and outputs: round, odd, smallest, and as in a small model."""

QUANTIZED_SHAPES = ((256, 192), (768, 33))
"""Whole groups of inputs, whatever the scheme; round and odd numbers of outputs."""

GATED_SHAPES = ((64, 96), (100, 34), (576, 1536))

NUM_TOKENS = (1, 2, 7, 33, 129)


def linear_cases() -> Iterator[Case]:
    """All cases, the same ones in the same order each time."""
    for shape, dtype, has_bias, num_tokens in product(SHAPES, Dtype, (False, True), NUM_TOKENS):
        is_quick = num_tokens in (1, 7, 129) and shape in SHAPES[:3]
        yield _case(_request(shape, dtype, has_bias=has_bias), num_tokens, is_quick=is_quick)
    for scheme, shape, dtype, num_tokens in product(
        WEIGHT_SCHEMES, QUANTIZED_SHAPES, Dtype, (1, 7, 129)
    ):
        for has_bias in (False, True):
            is_quick = shape == QUANTIZED_SHAPES[0] and num_tokens == 7
            is_quick = is_quick and has_bias == (dtype is Dtype.BFLOAT16)
            request = _request(shape, dtype, has_bias=has_bias, scheme=scheme)
            yield _case(request, num_tokens, is_quick=is_quick)
    yield from _gated_cases()
    for dtype, scheme in product(Dtype, (None, *WEIGHT_SCHEMES)):
        yield from _harder_cases(dtype, scheme)
    for shape, dtype in product(((64, 96), (576, 1536)), Dtype):
        yield _sliced_case(_request(shape, dtype))


def _gated_cases() -> Iterator[Case]:
    """Layers whose outputs are a gate and what it is for, with the call that applies it."""
    for shape, dtype, num_tokens in product(GATED_SHAPES, Dtype, (1, 7, 129)):
        request = _request(shape, dtype, has_bias=num_tokens == 7, is_gated=True)
        yield _case(request, num_tokens, is_quick=shape == GATED_SHAPES[0])
    for scheme, dtype, num_tokens in product(WEIGHT_SCHEMES, Dtype, (1, 7)):
        shape, is_quick = QUANTIZED_SHAPES[0], num_tokens == 7 and dtype is Dtype.BFLOAT16
        request = _request(shape, dtype, has_bias=num_tokens == 1, scheme=scheme, is_gated=True)
        yield _case(request, num_tokens, has_spoilt_row=num_tokens == 7, is_quick=is_quick)


def _harder_cases(dtype: Dtype, scheme: WeightScheme | None) -> Iterator[Case]:
    """Inputs that lie in other ways, and one with a row of NaN."""
    request = _request(QUANTIZED_SHAPES[0], dtype, scheme=scheme)
    is_quick = dtype is Dtype.BFLOAT16
    for placement, num_tokens in product((Placement.CONTIGUOUS, Placement.MISALIGNED), (1, 7)):
        yield _case(request, num_tokens, placement=placement, is_quick=is_quick and scheme is None)
    yield _case(request, 7, has_spoilt_row=True, is_quick=is_quick)


def _request(
    shape: tuple[int, int],
    dtype: Dtype,
    *,
    has_bias: bool = False,
    scheme: WeightScheme | None = None,
    is_gated: bool = False,
) -> LinearRequest:
    return LinearRequest(
        role="conformance",
        in_features=shape[0],
        out_features=shape[1],
        dtype=dtype,
        has_bias=has_bias,
        scheme=scheme,
        is_gated=is_gated,
    )


def _case(
    request: LinearRequest,
    num_tokens: int,
    *,
    placement: Placement = Placement.WIDE,
    has_spoilt_row: bool = False,
    is_quick: bool,
) -> Case:
    def check(subject: Subject) -> None:
        check_linear(
            subject.provider,
            request,
            subject.context,
            num_tokens=num_tokens,
            placement=placement,
            has_spoilt_row=has_spoilt_row,
        )

    features = [
        str(request.scheme) if request.scheme is not None else "",
        "bias" if request.has_bias else "",
        "gated" if request.is_gated else "",
        f"{placement} inputs" if placement is not Placement.WIDE else "",
        "a row of NaN" if has_spoilt_row else "",
    ]
    return _named(
        request,
        feature=", ".join(filter(None, features)) or "plain",
        name=f"{_shape(request)} of {num_tokens} tokens",
        is_quick=is_quick,
        check=check,
    )


def _sliced_case(request: LinearRequest) -> Case:
    half = replace(request, in_features=request.in_features // 2)

    def check(subject: Subject) -> None:
        require_served(subject, half)
        require_served(subject, replace(request, out_features=request.out_features // 2))
        check_sliced_linear(subject.provider, request, subject.context)

    is_quick = request.dtype is Dtype.FLOAT32
    name = _shape(request)
    return _named(request, feature="two ranks as one", name=name, is_quick=is_quick, check=check)


def _named(
    request: LinearRequest,
    *,
    feature: str,
    name: str,
    is_quick: bool,
    check: Callable[[Subject], None],
) -> Case:
    def if_served(subject: Subject) -> None:
        require_served(subject, request)
        check(subject)

    # A gate changes nothing in what is promised: the product is served with it or without.
    words = (
        f"linear {_shape(request)}",
        str(request.dtype),
        "bias" if request.has_bias else "",
        str(request.scheme) if request.scheme is not None else "",
    )
    return Case(
        family="linear",
        operation="linear",
        dtype=str(request.dtype),
        feature=feature,
        name=name,
        request="" if request.is_gated else ", ".join(filter(None, words)),
        asked=None if request.is_gated else request,
        is_quick=is_quick,
        check=if_served,
    )


def _shape(request: LinearRequest) -> str:
    return f"{request.in_features}->{request.out_features}"
