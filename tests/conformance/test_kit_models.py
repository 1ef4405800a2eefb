"""Whole models in the kit: every family is there, and a provider that spoils answers is caught."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chiplet.config import DeviceOptions
from chiplet.models.plugin import models
from chiplet.testing.conformance.case import Case, Outcome, Status, Subject, run_case
from chiplet.testing.conformance.model_cases import SCENARIOS, model_cases
from chiplet.testing.conformance.suite import find_subjects
from chiplet.testing.conformance.tiny_models import KINDS, OF_EXPERTS
from tests.unit.plugins.conftest import PROVIDER_MANIFEST, PluginFolder, folder

__all__ = ["folder"]

CASES = list(model_cases())

PLUGIN = """
class Provider:
    name = "acme"
    accepts = frozenset(Feature)
    def assess(self, request):
        return Yes(Tier.REFERENCE)
    def build(self, request, context):
        {build}
        inner = context.reference(request)
        class Attention:
            layouts, plan = inner.layouts, inner.plan
            def run(self, q, k, v, kv, plan):
                out = inner.run(q, k, v, kv, plan)
                {spoil}
                return out
        return Attention()

@hookimpl
def attention(device):
    return [Provider()]
"""


def outcome(folder: PluginFolder, scenario: str, *, spoil: str = "", build: str = "") -> Outcome:
    source = PLUGIN.replace("{spoil}", spoil).replace("{build}", build)
    folder.add("acme", source, PROVIDER_MANIFEST)
    return run_case(case_of("attention", "llama", scenario), subject_of("attention", "acme"))


def case_of(family: str, kind: str, scenario: str) -> Case:
    (case,) = (
        each for each in CASES if (each.family, each.name, each.feature) == (family, kind, scenario)
    )
    return case


def subject_of(family: str, name: str) -> Subject:
    (subject,) = (
        each
        for each in find_subjects(DeviceOptions(device="reference"), name)
        if each.family == family
    )
    return subject


def test_every_family_of_models_is_there() -> None:
    served = {name for entry in models() for name in entry.architectures}
    assert {name for kind in KINDS.values() for name in kind["architectures"]} == served
    assert {kind for kind, facts in KINDS.items() if "num_experts_per_tok" in facts} == OF_EXPERTS


def test_case_names_are_distinct_in_each_family() -> None:
    names = [(each.family, each.id) for each in CASES]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_an_outside_provider_that_is_right_passes(folder: PluginFolder, scenario: str) -> None:
    found = outcome(folder, scenario)
    assert (found.status, found.detail) == (Status.PASSED, "")


@pytest.mark.parametrize(
    ("scenario", "spoil"),
    [
        ("whole prompts", "out = out * 1.1"),
        ("chunked prefill", "if len(q) == 7: out = out.roll(1, 0)"),
        ("radix hits", "if len(q) < 12: out = out * 0.9"),
        ("retraction", "if len(q) == 2: out = out.flip(0)"),
        ("everything at once", "if len(q) == 1: out = out + 0.1"),
    ],
)
def test_a_wrong_provider_is_caught(folder: PluginFolder, scenario: str, spoil: str) -> None:
    found = outcome(folder, scenario, spoil=spoil)
    assert found.status is Status.FAILED
    assert "log-probabilities of token" in found.detail


def test_one_that_cannot_be_built_has_failed_and_is_not_refused(folder: PluginFolder) -> None:
    found = outcome(folder, "whole prompts", build="1 / 0")
    assert found.status is Status.FAILED
    assert "build raised ZeroDivisionError" in found.detail


def test_narrow_types_are_compared_position_by_position(folder: PluginFolder) -> None:
    (case,) = (
        each
        for each in CASES
        if (each.family, each.name, each.dtype) == ("attention", "qwen3", "bfloat16")
    )
    folder.add("acme", PLUGIN.replace("{spoil}", "").replace("{build}", ""), PROVIDER_MANIFEST)
    assert run_case(case, subject_of("attention", "acme")).status is Status.PASSED


def test_who_stands_alone_is_skipped() -> None:
    alone = replace(subject_of("attention", "reference"), engines=None)
    found = run_case(case_of("attention", "llama", "whole prompts"), alone)
    assert found.status is Status.SKIPPED
