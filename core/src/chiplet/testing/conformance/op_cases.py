"""Every case of the other operations: each one in each type, for several numbers of rows."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from chiplet.api import Dtype, Op, OpRequest
from chiplet.testing.conformance.case import Case, Subject, require_served
from chiplet.testing.conformance.ops import check_op

NUM_ROWS = (1, 2, 7, 129, 300)


def op_cases() -> Iterator[Case]:
    """All cases, the same ones in the same order each time."""
    for op, dtype, num_rows in product(Op, Dtype, NUM_ROWS):
        yield _case(OpRequest(op=op, dtype=dtype), num_rows)


def _case(request: OpRequest, num_rows: int) -> Case:
    def check(subject: Subject) -> None:
        require_served(subject, request)
        check_op(subject.provider, request, subject.context, num_rows=num_rows)

    return Case(
        family="ops",
        operation=f"ops/{request.op}",
        dtype=str(request.dtype),
        name=f"{num_rows} rows",
        request=f"ops/{request.op}, {request.dtype}",
        asked=request,
        is_quick=num_rows in (1, 7, 129),
        check=check,
    )
