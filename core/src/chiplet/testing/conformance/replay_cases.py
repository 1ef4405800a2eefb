"""Every case of attention in buckets, and what a platform makes of a step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import torch

from chiplet.api import AttentionImpl, AttentionRequest, Dtype, Execution
from chiplet.testing.conformance.attention_cases import SHAPES, Shape, attention_request, in_words
from chiplet.testing.conformance.attention_trees import tree_bucket_cases
from chiplet.testing.conformance.case import Case, Refused, Skipped, Subject, require_served
from chiplet.testing.conformance.replay import (
    BucketCase,
    CannotPrepareError,
    bucket_cases,
    check_in_bucket,
)

_SHAPES = (SHAPES[0], SHAPES[3], SHAPES[4], SHAPES[6])


def replay_cases() -> Iterator[Case]:
    """All cases, the same ones in the same order each time."""
    for shape, dtype, window in product(_SHAPES, Dtype, (None, 20)):
        request = attention_request(shape, dtype, window=window)
        is_quick = shape == SHAPES[0] and (dtype is Dtype.BFLOAT16 or window is None)
        for case in bucket_cases(shape.page_size):
            for is_recorded in (False, True):
                yield _case(shape, request, case, is_recorded=is_recorded, is_quick=is_quick)
    for dtype, window in product(Dtype, (None, 20)):
        request = replace(attention_request(SHAPES[0], dtype, window=window), has_tree=True)
        for case in tree_bucket_cases(SHAPES[0].page_size):
            for is_recorded in (False, True):
                is_quick = dtype is Dtype.FLOAT32
                yield _case(SHAPES[0], request, case, is_recorded=is_recorded, is_quick=is_quick)
    for case in bucket_cases(16):
        yield _platform_case(case)


def _case(
    shape: Shape,
    request: AttentionRequest,
    case: BucketCase,
    *,
    is_recorded: bool,
    is_quick: bool,
) -> Case:
    def check(subject: Subject) -> None:
        require_served(subject, request)
        impl = subject.provider.build(request, subject.context)
        _check(impl, request, subject, case, is_recorded=is_recorded)

    window = f"window {request.window}, " if request.window is not None else ""
    window += "trees, " if request.has_tree else ""
    return Case(
        family="attention",
        operation="attention",
        dtype=str(request.dtype),
        feature=window + ("recorded and replayed" if is_recorded else "padded to a bucket"),
        name=f"{shape} {case.name}",
        request=in_words(request),
        asked=request,
        is_quick=is_quick,
        check=check,
    )


def _platform_case(case: BucketCase) -> Case:
    """What the platform records of the reference's attention, and replays."""
    request = attention_request(SHAPES[0], Dtype.FLOAT32)

    def check(subject: Subject) -> None:
        impl = subject.context.reference(request)
        _check(impl, request, subject, case, is_recorded=True)

    return Case(
        family="platform",
        operation="platform",
        feature="recorded and replayed",
        name=f"the reference's attention, {case.name}",
        is_quick=True,
        check=check,
    )


@torch.inference_mode()
def _check(
    impl: AttentionImpl,
    request: AttentionRequest,
    subject: Subject,
    case: BucketCase,
    *,
    is_recorded: bool,
) -> None:
    context = subject.context
    try:
        check_in_bucket(impl, request, context, case, is_recorded=is_recorded, name=subject.name)
    except NotImplementedError as error:
        if subject.family == "platform":
            raise AssertionError(f"the step cannot be prepared: {error}") from error
        raise Skipped(f"serves eager steps only: {error}") from error
    except CannotPrepareError as error:
        # Allowed where steps run as they are otherwise; what the reference needs, all can record.
        if subject.family == "platform" or context.platform.execution is Execution.STEP:
            raise AssertionError(f"the step cannot be prepared: {error}") from error
        raise Refused(f"the platform cannot record it, and runs it as it is: {error}") from error
