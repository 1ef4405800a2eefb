"""Steps in buckets: the kit records them where a platform does, and sees what padding spoils."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from chiplet.api import BuildContext
from chiplet.reference.attention import PlainAttention, ReferenceAttention
from chiplet.reference.platform import ReferencePlatform
from chiplet.testing.conformance.case import Status, Subject, run_case
from chiplet.testing.conformance.suite import all_cases
from chiplet.testing.replayed_step import ReplayedStep, few_buckets
from tests.conformance.wrong_providers import Wrong

WORDS = ("padded to a bucket", "recorded and replayed")
CASES = [
    case
    for case in all_cases(quick=True)
    if case.feature.endswith(WORDS) and case.dtype in ("float32", "") and "wide" not in case.name
]


class RecordingPlatform(ReferencePlatform):
    def buckets(self, limits):
        return few_buckets(limits)

    def prepare(self, step):
        return ReplayedStep(step)


class DeafPlatform(RecordingPlatform):
    """Replays the inputs with which it recorded."""

    def prepare(self, step):
        replayed, padding = ReplayedStep(step), step.padding()
        launch = replayed.launch
        replayed.launch = lambda host: launch(padding)
        return replayed


class ForgetfulPlatform(RecordingPlatform):
    def prepare(self, step):
        raise RuntimeError("no room for a graph")


class PlansOnce(PlainAttention):
    kept = None

    def plan(self, batch, layout):
        self.kept = self.kept or super().plan(batch, layout)
        return self.kept


class SpreadsPadding(PlainAttention):
    """Looks for the largest result of all rows."""

    def run(self, q, k, v, kv, plan):
        out = super().run(q, k, v, kv, plan)
        spoilt = q.isnan().any()
        return torch.where(spoilt, torch.full_like(out, torch.nan), out)


class WritesPaddingToPageZero(PlainAttention):
    def plan(self, batch, layout):
        plan = super().plan(batch, layout)
        page_ids = torch.where(batch.token_ids == 0, 0, plan.page_ids)
        return replace(plan, page_ids=page_ids)


def subject(target, platform, family="attention"):
    def reference(request):
        return PlainAttention(request)

    return Subject(
        family=family,
        name="acme",
        distribution="acme",
        version="1",
        target=target,
        context=BuildContext(platform, reference),
    )


def outcomes_of(checked):
    return [run_case(case, checked) for case in CASES if case.family == checked.family]


def test_the_reference_is_recorded_and_replayed():
    found = outcomes_of(subject(ReferenceAttention(), RecordingPlatform()))
    found += outcomes_of(subject(None, RecordingPlatform(), "platform"))
    assert [each.detail for each in found if each.status is not Status.PASSED] == []
    assert len(found) == 5 * len(WORDS) + 3


def test_what_a_platform_does_not_record_is_skipped():
    found = outcomes_of(subject(ReferenceAttention(), ReferencePlatform()))
    statuses = {each.case.feature: each.status for each in found}
    assert statuses["padded to a bucket"] is Status.PASSED
    assert statuses["recorded and replayed"] is Status.SKIPPED


@pytest.mark.parametrize(
    ("impl", "said", "features"),
    [
        # Recorded, its only plan is part of the record.
        (PlansOnce, "error|NaN|stray writes|the cache differs", WORDS[:1]),
        (SpreadsPadding, "NaN in the result", WORDS),
        (WritesPaddingToPageZero, "NaN|stray writes|the cache differs", WORDS),
    ],
)
def test_wrong_attention_in_buckets_is_caught(impl, said, features):
    found = outcomes_of(subject(Wrong(impl), RecordingPlatform()))
    for feature in features:
        failed = [
            each.detail
            for each in found
            if each.case.feature == feature and each.status is Status.FAILED
        ]
        assert failed
        assert re.search(said, failed[0]), failed[0]
        assert not failed[0].startswith("raised")


@pytest.mark.parametrize(
    ("platform", "said"), [(DeafPlatform, "error|NaN"), (ForgetfulPlatform, "no room for a graph")]
)
def test_a_platform_that_replays_wrongly_is_caught(platform, said):
    found = outcomes_of(subject(None, platform(), "platform"))
    assert {each.status for each in found} == {Status.FAILED}
    assert all(re.search(said, each.detail) for each in found)


def test_attention_that_is_not_recorded_on_an_eager_platform_is_refused():
    found = outcomes_of(subject(ReferenceAttention(), ForgetfulPlatform()))
    recorded = [each for each in found if each.case.feature == WORDS[1]]
    assert {each.status for each in recorded} == {Status.REFUSED}
    assert "no room for a graph" in recorded[0].detail


def test_attention_for_eager_steps_only_is_skipped_with_its_reason():
    class Eager(PlainAttention):
        def plan(self, batch, layout):
            if batch.lengths_host is None:
                raise NotImplementedError("plans from lengths")
            return super().plan(batch, layout)

    found = outcomes_of(subject(Wrong(Eager), RecordingPlatform()))
    assert {each.status for each in found} == {Status.SKIPPED}
    assert "eager steps only: plans from lengths" in found[0].detail
