"""Every case of linear layers: shapes x types x numbers of tokens, with bias and without."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from chiplet.api import Dtype, LinearRequest
from chiplet.testing.conformance.case import Case, Subject, require_served
from chiplet.testing.conformance.linear import check_linear

SHAPES = ((64, 96), (100, 33), (1, 1), (576, 1536), (192, 64), (8, 4096), (4096, 8))
"""Inputs and outputs: round, odd, smallest, and as in a small model."""

NUM_TOKENS = (1, 2, 7, 33, 129)


def linear_cases() -> Iterator[Case]:
    """All cases, the same ones in the same order each time."""
    for shape, dtype, has_bias, num_tokens in product(SHAPES, Dtype, (False, True), NUM_TOKENS):
        request = LinearRequest(
            role="conformance",
            in_features=shape[0],
            out_features=shape[1],
            dtype=dtype,
            has_bias=has_bias,
        )
        is_quick = num_tokens in (1, 7, 129) and shape in SHAPES[:3]
        yield _case(request, num_tokens, is_quick=is_quick)


def _case(request: LinearRequest, num_tokens: int, *, is_quick: bool) -> Case:
    def check(subject: Subject) -> None:
        require_served(subject, request)
        check_linear(subject.provider, request, subject.context, num_tokens=num_tokens)

    feature = "bias" if request.has_bias else "plain"
    shape = f"{request.in_features}->{request.out_features}"
    return Case(
        family="linear",
        operation="linear",
        dtype=str(request.dtype),
        feature=feature,
        name=f"{shape} of {num_tokens} tokens",
        request=f"linear {shape}, {request.dtype}, {feature}",
        is_quick=is_quick,
        check=check,
    )
