"""Every case of mixtures of experts: shapes x types x loads x numbers of tokens, and slices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

from chiplet.api import Activations, Dtype, Granularity, MoeRequest
from chiplet.testing.conformance.case import Case, Subject, require_served
from chiplet.testing.conformance.moe import MoeLoad, check_moe, check_sliced_moe
from chiplet.testing.conformance.schemes import WEIGHT_SCHEMES

SHAPES = ((48, 20, 8, 3), (64, 32, 4, 1), (33, 17, 5, 5), (128, 96, 32, 4))
"""Hidden size, width of an expert, experts, experts per token: odd, round, all of them, many."""

CODED_SHAPE = (256, 128, 4, 2)
"""Whole groups of inputs for both products, whatever the scheme."""

EXPERT_SCHEMES = tuple(
    each
    for each in WEIGHT_SCHEMES
    if each.coding.block is None
    and each.granularity in (Granularity.CHANNEL, Granularity.GROUP)
    and each.activations is not Activations.STATIC
)
"""Schemes whose scales are of single outputs, as experts that stand above one another need."""

NUM_TOKENS = (1, 7, 129)


def moe_cases() -> Iterator[Case]:
    """All cases, the same ones in the same order each time."""
    for shape, dtype, renormalize, load, num_tokens in product(
        SHAPES, Dtype, (False, True), MoeLoad, NUM_TOKENS
    ):
        is_quick = shape == SHAPES[0] and renormalize and num_tokens != 129
        is_quick = is_quick or (shape != SHAPES[0] and (num_tokens, load) == (7, MoeLoad.SPREAD))
        request = _request(shape, dtype, renormalize=renormalize)
        yield _case(request, load, num_tokens, is_quick=is_quick)
    for shape, dtype in product(SHAPES, Dtype):
        request = _request(shape, dtype, renormalize=True)
        yield _case(request, MoeLoad.SPREAD, 7, has_spoilt_row=True, is_quick=shape == SHAPES[0])
    for scheme, dtype, num_tokens in product(EXPERT_SCHEMES, Dtype, (1, 7)):
        request = replace(_request(CODED_SHAPE, dtype, renormalize=True), scheme=scheme)
        is_quick = num_tokens == 7 and dtype is Dtype.BFLOAT16
        yield _case(request, MoeLoad.SPREAD, num_tokens, is_quick=is_quick)
    for shape, dtype in product(SHAPES[::3], Dtype):
        yield _sliced_case(_request(shape, dtype, renormalize=True))


def _request(shape: tuple[int, int, int, int], dtype: Dtype, *, renormalize: bool) -> MoeRequest:
    hidden, width, num_experts, top_k = shape
    return MoeRequest(
        role="conformance",
        hidden_size=hidden,
        intermediate_size=width,
        num_experts=num_experts,
        top_k=top_k,
        renormalize=renormalize,
        dtype=dtype,
    )


def _case(
    request: MoeRequest,
    load: MoeLoad,
    num_tokens: int,
    *,
    has_spoilt_row: bool = False,
    is_quick: bool,
) -> Case:
    def check(subject: Subject) -> None:
        require_served(subject, request)
        check_moe(
            subject.provider,
            request,
            subject.context,
            num_tokens=num_tokens,
            load=load,
            has_spoilt_row=has_spoilt_row,
        )

    feature = "plain" if load is MoeLoad.SPREAD else str(load)
    feature = feature if request.scheme is None else str(request.scheme)
    scheme = "" if request.scheme is None else f", {request.scheme}"
    weights = "renormalized" if request.renormalize else "as they are"
    return Case(
        family="moe",
        operation="moe",
        dtype=str(request.dtype),
        feature="a row of NaN" if has_spoilt_row else feature,
        name=f"{_words(request)}, weights {weights}, {num_tokens} tokens",
        request=f"moe {_words(request)}, {request.dtype}, weights {weights}{scheme}",
        asked=request,
        is_quick=is_quick,
        check=check,
    )


def _sliced_case(request: MoeRequest) -> Case:
    half = replace(request, intermediate_size=request.intermediate_size // 2)

    def check(subject: Subject) -> None:
        require_served(subject, half)
        check_sliced_moe(subject.provider, request, subject.context)

    return Case(
        family="moe",
        operation="moe",
        dtype=str(request.dtype),
        feature="two ranks as one",
        name=_words(request),
        is_quick=request.dtype is Dtype.FLOAT32,
        check=check,
    )


def _words(request: MoeRequest) -> str:
    sizes = f"{request.hidden_size}->{request.intermediate_size}"
    return f"{request.top_k} of {request.num_experts}, {sizes}"
