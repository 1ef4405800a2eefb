"""Honesty: whatever a provider is asked, a Yes runs and is right, and a No carries a reason."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from random import Random

from chiplet.api import (
    AttentionRequest,
    CommunicationRequest,
    Dtype,
    Feature,
    KvCoding,
    KvSpec,
    LinearRequest,
    MoeRequest,
    Op,
    OpRequest,
    WeightScheme,
)
from chiplet.testing.conformance.attention import check_attention
from chiplet.testing.conformance.attention_inputs import AttentionCase
from chiplet.testing.conformance.attention_trees import PLAIN, random_tree
from chiplet.testing.conformance.case import Case, Subject, require_served
from chiplet.testing.conformance.linear import check_linear
from chiplet.testing.conformance.moe import MoeLoad, check_moe
from chiplet.testing.conformance.op_inputs import OpSize
from chiplet.testing.conformance.ops import check_op
from chiplet.testing.conformance.schemes import WEIGHT_SCHEMES
from chiplet.testing.conformance.verdict import Request

NUM_REQUESTS = 60
"""Drawn requests of each family; the quick tier takes a quarter of them."""

_SEED = 20_11


def honesty_cases() -> Iterator[Case]:
    """Drawn requests, the same ones each time, and whether features are told apart at all."""
    for family in ("attention", "linear", "moe", "ops"):
        yield _features_case(family)
    random = Random(_SEED)
    for number in range(NUM_REQUESTS):
        attention = replace(_attention(random), has_tree=number % 5 == 0)
        for family, request in (
            ("attention", attention),
            ("linear", _linear(random)),
            ("moe", _moe(random)),
            ("ops", _op(random)),
        ):
            yield _case(family, request, number)


def _features_case(family: str) -> Case:
    def check(subject: Subject) -> None:
        accepts = subject.provider.accepts
        assert isinstance(accepts, frozenset), f"accepts is a {type(accepts).__name__}"
        unknown = sorted(accepts - frozenset(Feature))
        assert not unknown, f"accepts features that nobody knows: {', '.join(unknown)}"
        # A feature of tomorrow must be refused by whoever has not heard of it.
        assert "a feature of tomorrow" not in accepts, "accepts whatever it is asked for"

    return Case(
        family=family,
        operation=family,
        feature="features are named",
        name="accepts",
        is_quick=True,
        check=check,
    )


def _case(family: str, request: Request, number: int) -> Case:
    def check(subject: Subject) -> None:
        require_served(subject, request)
        try:
            _run(subject, request)
        except AssertionError as error:
            raise AssertionError(f"{error}; the request was {request}") from error

    return Case(
        family=family,
        operation=f"ops/{request.op}" if isinstance(request, OpRequest) else family,
        dtype=str(request.dtype),
        feature="drawn requests",
        name=f"no. {number}",
        is_quick=number % 4 == 0,
        check=check,
    )


def _run(subject: Subject, request: Request) -> None:
    match request:
        case AttentionRequest():
            lengths = AttentionCase("drawn", (1, 1, 9), (1, request.kv.page_size + 1, 30))
            if request.has_tree:
                lengths = replace(lengths, parents=(PLAIN, PLAIN, random_tree(9, 1)))
            check_attention(subject.provider, request, subject.context, lengths)
        case LinearRequest():
            check_linear(subject.provider, request, subject.context, num_tokens=5)
        case MoeRequest():
            load = MoeLoad.SPREAD
            check_moe(subject.provider, request, subject.context, num_tokens=5, load=load)
        case OpRequest():
            check_op(subject.provider, request, subject.context, size=OpSize(11))
        case CommunicationRequest():
            raise AssertionError("communication is not drawn: a Yes needs ranks to run")


def _attention(random: Random) -> AttentionRequest:
    num_kv_heads, dtype = random.choice((1, 2, 3, 4, 8)), random.choice(list(Dtype))
    head_dim = random.choice((1, 7, 8, 16, 24, 40, 48, 64, 72, 112, 128, 160, 192, 256))
    window = random.choice((None, None, 1, 2, 3, 17, 128, 100_000))
    return AttentionRequest(
        group="global" if window is None else "window",
        num_heads=num_kv_heads * random.choice((1, 2, 3, 4, 7)),
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        scale=random.choice((1.0, 0.0, 0.05, head_dim**-0.5)),
        dtype=dtype,
        kv=KvSpec(
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            page_size=random.choice((1, 2, 3, 8, 16, 24, 32, 128, 256)),
            dtype=random.choice((dtype, dtype, dtype, *Dtype)),
            coding=random.choice((None, None, None, *KvCoding)),
        ),
        window=window,
        softcap=random.choice((None, None, 1.0, 50.0)),
        has_sinks=random.random() < 0.2,
    )


def _linear(random: Random) -> LinearRequest:
    widths = (1, 2, 3, 8, 17, 31, 64, 100, 256, 511)
    scheme: WeightScheme | None = random.choice((None, *WEIGHT_SCHEMES))
    # All schemes divide 256 inputs into whole groups.
    num_inputs = random.choice(widths) if scheme is None else 256 * random.choice((1, 2, 3))
    request = LinearRequest(
        role=random.choice(("qkv_proj", "o_proj", "lm_head", "something_new")),
        in_features=num_inputs,
        out_features=random.choice(widths),
        dtype=random.choice(list(Dtype)),
        has_bias=random.random() < 0.5,
        scheme=scheme,
    )
    return replace(request, is_gated=request.out_features % 2 == 0 and not request.has_bias)


def _moe(random: Random) -> MoeRequest:
    num_experts = random.choice((1, 2, 3, 8, 17))
    return MoeRequest(
        hidden_size=random.choice((1, 8, 17, 64)),
        intermediate_size=random.choice((1, 3, 16, 40)),
        num_experts=num_experts,
        top_k=random.randint(1, num_experts),
        renormalize=random.random() < 0.5,
        dtype=random.choice(list(Dtype)),
    )


def _op(random: Random) -> OpRequest:
    return OpRequest(op=random.choice(list(Op)), dtype=random.choice(list(Dtype)))
