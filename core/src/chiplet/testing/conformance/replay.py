"""Attention in a bucket: padded, recorded, and replayed with other lengths and other pages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from chiplet.api import (
    AttentionImpl,
    AttentionRequest,
    BuildContext,
    Executable,
    Platform,
    ShapeBucket,
    StepLimits,
    StepOutputs,
)
from chiplet.api.executable import Sampling
from chiplet.testing.conformance.attention import assert_same_cache, expected
from chiplet.testing.conformance.attention_inputs import AttentionCase, Inputs
from chiplet.testing.conformance.attention_step import AttentionStep, TokenTables
from chiplet.testing.conformance.case import Skipped
from chiplet.testing.conformance.tolerance import assert_close


class CannotPrepareError(Exception):
    """The platform cannot prepare the step; the text says why."""


@dataclass(frozen=True, slots=True)
class BucketCase:
    """Steps that run one after another in one bucket.

    Attributes:
        num_tokens, num_requests, num_decodes, max_pages: of the bucket.
        steps: what the bucket serves; each has a cache of its own.
    """

    name: str
    num_tokens: int
    num_requests: int
    num_decodes: int
    max_pages: int
    steps: tuple[AttentionCase, ...]

    @property
    def bucket(self) -> ShapeBucket:
        """The bucket."""
        return ShapeBucket(
            num_tokens=self.num_tokens,
            num_requests=self.num_requests,
            num_decodes=self.num_decodes,
            max_pages=self.max_pages,
            sampling=Sampling.LOGPROBS,
        )


def bucket_cases(page: int) -> tuple[BucketCase, ...]:
    """Buckets and what runs in them, for a size of pages."""
    unlike = (3 * page, 1, page + 1, 2 * page - 1, page)
    decodes = (
        AttentionCase("one of eight", (1,), (2 * page + 3,)),
        AttentionCase("all of eight", (1,) * 8, (*unlike, 2, page, 3 * page - 1)),
        AttentionCase("five of eight", (1,) * 5, unlike[::-1], seed=1),
    )
    mixtures = (
        AttentionCase("a prompt", (40,), (40,)),
        AttentionCase("all kinds", (1, 1, 9, 20), (2 * page, 1, 9, page + 30)),
        AttentionCase("no room left", (1, 1, 2, 3, 17, 40), (4, page, 2, page + 3, 17, 41)),
        AttentionCase("decodes alone", (1, 1, 1), (page + 1, page, 3), seed=2),
        AttentionCase("a chunk behind its prefix", (7,), (3 * page + 5,)),
    )
    with_two = tuple(each for each in mixtures if each.num_decodes >= 2)
    long = 3 * page + 41
    most = -(-long // page) + 1
    return (
        BucketCase("decodes", 8, 8, 8, 3, decodes),
        BucketCase("decodes in a wide table", 8, 8, 8, 40, decodes[:2]),
        BucketCase("any mixture", 64, 6, 0, most, mixtures),
        BucketCase("two decodes and others", 64, 6, 2, most, with_two),
    )


def check_in_bucket(
    impl: AttentionImpl,
    request: AttentionRequest,
    context: BuildContext,
    case: BucketCase,
    *,
    is_recorded: bool,
    name: str,
) -> None:
    """Steps in a bucket give what the reference gives of their exact shapes; padding harms nobody.

    Args:
        impl: what is checked.
        request: what it was built for.
        context: where it runs.
        case: bucket and steps.
        is_recorded: the platform prepares the step once, and replays it; otherwise it runs
            operation by operation, on the bucket's tensors alone.
        name: of the provider.

    Raises:
        AssertionError: a result or the cache is wrong.
        Skipped: the platform prepares no steps.
        CannotPrepareError: it prepares some, and not this one.
    """
    if is_recorded:
        _require_buckets(context.platform)
    found = [expected(request, each, 1.0) for each in case.steps]
    steps = [each[0] for each in found]
    tables = TokenTables.of(steps, context.torch_device)
    num_pages = max(len(each.canonical) for each in steps) + 1
    for layout in impl.layouts():
        step = AttentionStep(
            impl,
            request,
            case.bucket,
            kv_layout=layout,
            num_pages=num_pages,
            tables=tables,
            context=context,
        )
        executable = _prepared(step, context.platform, is_recorded=is_recorded)
        results = list(_launched(step, executable, steps, tables.first_ids, context.platform))
        for lengths, (_, exact, plain, cache), (out, after) in zip(
            case.steps, found, results, strict=True
        ):
            what = f"{name}, layout {layout.name}, {case.name}: {lengths.name}"
            rows = out[: len(plain)].view(plain.shape).to(plain.dtype)
            assert_close(rows, plain, exact, what)
            assert_same_cache(after[: len(cache)], cache, what)
            assert bool(after[len(cache) :].isnan().all()), f"{what}: stray writes behind its pages"
            step.check_guards(what)
        _check_idle(step, executable, f"{name}, {case.name}: a step of padding alone")


def _require_buckets(platform: Platform) -> None:
    limits = StepLimits(
        max_tokens=64, max_requests=8, max_pages=40, max_prompt_rows=1, page_size=16
    )
    if not platform.buckets(limits):
        raise Skipped("the platform prepares no steps: each runs operation by operation")


def _prepared(step: AttentionStep, platform: Platform, *, is_recorded: bool) -> Executable:
    if step.storage is not None:
        step.storage.update(step.padding().arrays)
    if not is_recorded:
        return step
    try:
        executable = platform.prepare(step)
    except NotImplementedError:  # of the implementation, which serves eager steps only
        raise
    except Exception as error:
        raise CannotPrepareError(f"{type(error).__name__}: {error}") from error
    assert executable.bucket == step.bucket, "prepare gives the executable of another bucket"
    return executable


def _launched(
    step: AttentionStep,
    executable: Executable,
    steps: Sequence[Inputs],
    first_ids: Sequence[int],
    platform: Platform,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows and cache of each step, in main memory."""
    for inputs, first_id in zip(steps, first_ids, strict=True):
        step.load(inputs.canonical)
        host = step.inputs(inputs.batch, first_id)
        if step.storage is not None:
            step.storage.update(host.arrays)
        outputs = executable.launch(host)
        rows = platform.to_host_async(_rows(outputs))
        platform.record_event().wait()
        yield rows, step.cache()


def _check_idle(step: AttentionStep, executable: Executable, what: str) -> None:
    """A step of nothing but padding leaves no trace outside the padding page."""
    before = step.cache()
    if step.storage is not None:
        step.storage.update(step.padding().arrays)
    executable.launch(step.padding())
    after = step.cache()
    assert torch.equal(after.nan_to_num(), before.nan_to_num()), f"{what}: the cache changed"
    assert torch.equal(after.isnan(), before.isnan()), f"{what}: stray writes"


def _rows(outputs: StepOutputs) -> Tensor:
    assert outputs.logprobs is not None, "the step's second output is missing"
    return outputs.logprobs.top
