"""Every case of the other operations: each one in each type, in many sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product

from chiplet.api import Dtype, Op, OpRequest
from chiplet.testing.conformance.case import Case, Subject, require_served
from chiplet.testing.conformance.op_inputs import OpSize
from chiplet.testing.conformance.ops import check_op

NUM_ROWS = (1, 2, 7, 129, 300)

_FEW_ROWS = (1, 7, 129)
_QUICK_ROWS = 7

_WIDTHS = (1, 7, 33, 130, 1000, 5120)
"""Single, odd, just beyond a vector or block, no power of two, and more than a block of threads."""

_VOCABS = (1, 2, 31, 1023, 32_003)
_LARGE_VOCAB = 151_669
"""As the largest of today's models have; the float64 reference allows a few rows of it only."""

_HEADS = ((1, 1, 2), (3, 1, 6), (5, 5, 80), (8, 2, 128), (2, 1, 256))

_OF_WIDTH = (Op.EMBEDDING, Op.RMS_NORM, Op.ADD_RMS_NORM, Op.SILU_MUL)
_OF_VOCAB = (
    Op.FEED,
    Op.EMBEDDING,
    Op.PENALIZE,
    Op.MASK_TOKENS,
    Op.ARGMAX,
    Op.SAMPLE,
    Op.TOP_LOGPROBS,
)

_QUICK: Mapping[Op, tuple[OpSize, ...]] = {
    **dict.fromkeys(_OF_WIDTH, (OpSize(_QUICK_ROWS, width=33),)),
    **dict.fromkeys(_OF_VOCAB, (OpSize(_QUICK_ROWS, vocab=1023),)),
    Op.ROTARY: (OpSize(_QUICK_ROWS, heads=(3, 1, 6)),),
}
"""Of the unusual sizes, those in the quick tier, in one type: each may be a program to compile."""


def op_cases() -> Iterator[Case]:
    """All cases, the same ones in the same order each time."""
    for op, dtype in product(Op, Dtype):
        request = OpRequest(op=op, dtype=dtype)
        for num_rows in NUM_ROWS:
            yield _case(request, OpSize(num_rows), "plain", is_quick=num_rows in _FEW_ROWS)
        for feature, size in _unusual(op):
            is_quick = dtype is Dtype.FLOAT32 and size in _QUICK.get(op, ())
            yield _case(request, size, feature, is_quick=is_quick)


def _unusual(op: Op) -> Iterator[tuple[str, OpSize]]:
    """Sizes beside the plain ones, with the report's row for them."""
    if op in _OF_WIDTH:
        for width, num_rows in product(_WIDTHS, _FEW_ROWS):
            yield "widths", OpSize(num_rows, width=width)
    if op in _OF_VOCAB:
        for vocab, num_rows in product(_VOCABS, _FEW_ROWS):
            yield "vocabularies", OpSize(num_rows, vocab=vocab)
        yield "vocabularies", OpSize(3, vocab=_LARGE_VOCAB)
    if op is Op.ROTARY:
        for heads, num_rows in product(_HEADS, _FEW_ROWS):
            yield "heads", OpSize(num_rows, heads=heads)


def _case(request: OpRequest, size: OpSize, feature: str, *, is_quick: bool) -> Case:
    def check(subject: Subject) -> None:
        require_served(subject, request)
        check_op(subject.provider, request, subject.context, size=size)

    return Case(
        family="ops",
        operation=f"ops/{request.op}",
        dtype=str(request.dtype),
        feature=feature,
        name=_words(size, feature),
        request=f"ops/{request.op}, {request.dtype}",
        asked=request,
        is_quick=is_quick,
        check=check,
    )


def _words(size: OpSize, feature: str) -> str:
    num_heads, num_kv_heads, head_dim = size.heads
    special = {
        "plain": "",
        "widths": f", {size.width} wide",
        "vocabularies": f", {size.vocab} tokens known",
        "heads": f", {num_heads}/{num_kv_heads} heads of {head_dim}",
    }
    return f"{size.num_rows} rows{special[feature]}"
