"""The kit itself: it catches what is wrong, says what is refused, and reports both."""

from __future__ import annotations

import json
import re
import threading
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from chiplet.api import No, Tier, Yes
from chiplet.cli.main import main
from chiplet.config import DeviceOptions
from chiplet.errors import ConfigError
from chiplet.formats.quantization.int8 import Int8Channels
from chiplet.reference.attention import PlainAttention, ReferenceAttention
from chiplet.testing.conformance import snapshot
from chiplet.testing.conformance.case import Case, Refused, Skipped, Status, Subject, run_case
from chiplet.testing.conformance.guards import GUARD_BYTES, GuardedBuffer
from chiplet.testing.conformance.package_cases import package_cases
from chiplet.testing.conformance.ranks import Ranks, on_ranks
from chiplet.testing.conformance.report import Report
from chiplet.testing.conformance.suite import all_cases, find_subjects, pair
from tests.conformance.wrong_linears import LINEAR
from tests.conformance.wrong_providers import ATTENTION, COMMUNICATION, MOE, OPS, Wrong

QUICK = all_cases(quick=True)
FAMILIES = {"attention": ATTENTION, "linear": LINEAR, "moe": MOE, "ops": OPS}
WRONG = [
    pytest.param(family, provider, id=f"{family}-{name.replace(' ', '-')}")
    for family, providers in FAMILIES.items()
    for name, provider in providers.items()
]


@pytest.fixture(scope="module")
def context():
    return find_subjects(DeviceOptions(device="reference"))[0].context


class WrongFormat:
    """Core's int8, spoilt in one way."""

    name = "wrong"

    def __init__(self, *, before=None, after=None, wavers=False):
        self.inner, self.before, self.after, self.wavers = Int8Channels(), before, after, wavers
        self.num_asked = 0

    def scheme(self, layer):
        self.num_asked += 1
        return None if self.wavers and self.num_asked % 2 else self.inner.scheme(layer)

    def quantize(self, weight, scheme):
        if self.before is not None:
            weight = self.before(weight)
        weights = self.inner.quantize(weight, scheme)
        for part, spoil in (self.after or {}).items():
            weights = replace(weights, **{part: spoil(getattr(weights, part))})
        return weights


WRONG_FORMATS = {
    "takes NaN": {"before": torch.nan_to_num},
    "draws": {"before": lambda weight: weight + torch.rand_like(weight) * 0.01},
    "other codes": {"after": {"weight": lambda codes: codes.roll(1, dims=1)}},
    "no canonical type": {"after": {"weight": lambda codes: codes.to(torch.int16)}},
    "scales that overflow": {"after": {"scales": lambda scales: scales / 0}},
    "changes the weight": {"before": lambda weight: weight.mul_(1.5)},
    "wavers": {"wavers": True},
}


@pytest.mark.parametrize("kind", WRONG_FORMATS)
def test_a_wrong_format_is_caught(context, kind):
    checked = subject("quantization", WrongFormat(**WRONG_FORMATS[kind]), context)
    cases = [each for each in QUICK if each.family == checked.family]
    assert any(run_case(case, checked).status is Status.FAILED for case in cases)


class Greedy:
    """Takes every checkpoint for its own."""

    name = "greedy"

    def recognizes(self, checkpoint):
        return True


def test_a_format_that_takes_everything_is_caught(context):
    checked = subject("stored format", Greedy(), context)
    cases = [each for each in QUICK if each.family == checked.family]
    assert {run_case(case, checked).status for case in cases} == {Status.FAILED}


def test_every_format_of_the_installation_passes():
    subjects = find_subjects(DeviceOptions(device="reference"))
    formats = [each for each in subjects if each.family in ("quantization", "stored format")]
    assert {each.name for each in formats} >= {
        "int8",
        "int4",
        "fp8",
        "mxfp4",
        "nvfp4",
        "awq",
        "gptq",
    }
    outcomes = [run_case(*each) for each in pair(QUICK, formats)]
    failed = [each for each in outcomes if each.status is Status.FAILED]
    assert {f"{each.subject.name} {each.case.id}": each.detail for each in failed} == {}


def subject(family, target, context):
    return Subject(
        family=family,
        name="wrong",
        distribution="acme",
        version="1",
        target=target,
        context=context,
    )


@pytest.mark.parametrize(("family", "provider"), WRONG)
def test_a_wrong_provider_is_caught_by_the_quick_tier(context, family, provider):
    checked = subject(family, provider, context)
    outcomes = (run_case(case, checked) for case in QUICK if case.family == family)
    failure = next((each for each in outcomes if each.status is Status.FAILED), None)
    assert failure is not None
    assert re.search(provider.caught, failure.detail), failure.detail
    assert failure.detail.startswith("raised") == provider.caught.startswith("raised")


@pytest.mark.parametrize("name", COMMUNICATION)
def test_wrong_collectives_are_caught_by_the_quick_tier(context, name):
    provider = COMMUNICATION[name]

    def make(rank, size, rendezvous):
        meeting = Path(rendezvous) / "meeting"
        caught = Wrong(lambda request: provider.make(rank, size, meeting))
        return caught, context

    checked = subject("communication", Ranks(make), context)
    outcomes = (run_case(case, checked) for case in QUICK if case.family == "communication")
    failure = next((each for each in outcomes if each.status is Status.FAILED), None)
    assert failure is not None
    assert re.search(provider.caught, failure.detail), failure.detail
    assert not failure.detail.startswith("raised")


def test_ranks_that_do_not_finish_are_named():
    def work(rank):
        if rank:
            threading.Event().wait(0.4)

    with pytest.raises(AssertionError, match=r"ranks \[1\] of 2 did not finish"):
        on_ranks(2, work, timeout_s=0.1)


def test_what_a_rank_found_is_told_before_what_its_peers_missed():
    lost = threading.Event()

    def work(rank):
        if rank:
            lost.set()
            raise RuntimeError("connection reset by peer")
        assert lost.wait(5)
        raise AssertionError("other values than those sent")

    with pytest.raises(AssertionError, match="other values"):
        on_ranks(2, work)


@pytest.mark.parametrize("family", [*FAMILIES, "communication", "platform"])
def test_the_reference_passes_the_quick_tier(family):
    subjects = find_subjects(DeviceOptions(device="reference"))
    pairs = [each for each in pair(QUICK, subjects) if each[0].family == family]
    assert pairs
    wrong = [
        (case.id, outcome.detail)
        for case, who in pairs
        if (outcome := run_case(case, who)).status not in (Status.PASSED, Status.SKIPPED)
    ]
    assert not wrong


def test_there_are_thousands_of_distinct_attention_cases():
    cases = [each for each in all_cases() if each.family == "attention"]
    assert len({each.id for each in cases}) == len(cases) >= 2000


def test_outcomes_tell_apart_wrong_refused_and_skipped(context):
    def raises(error):
        def check(_):
            raise error

        return Case(family="x", operation="x", name="x", check=check)

    ends = [AssertionError("off"), ValueError("bad"), Refused("dtype"), Skipped("memory")]
    found = [run_case(raises(each), subject("x", None, context)) for each in ends]
    statuses = [Status.FAILED, Status.FAILED, Status.REFUSED, Status.SKIPPED]
    assert [each.status for each in found] == statuses
    assert [each.detail[:6] for each in found] == ["off", "raised", "dtype", "memory"]


@pytest.mark.parametrize("place", [GUARD_BYTES - 1, -1, -GUARD_BYTES + 60])
def test_guards_see_a_single_byte(place):
    buffer = GuardedBuffer((3, 4), torch.bfloat16, torch.device("cpu"))
    buffer.tensor.zero_()
    buffer.check("nothing was written outside")
    buffer.whole[place] = 0
    with pytest.raises(AssertionError, match="bytes"):
        buffer.check("outside")


SOURCES = {
    "from chiplet.config import EngineConfig": "imports",
    "def hook():\n    import chiplet.worker": "imports",
    "from chiplet import engine": "imports",
    "import importlib\nimportlib.import_module('chiplet.engine')": "imports",
    "import chiplet.api as api\napi.Yes.score = 3": "assigns",
    "from chiplet.api import Platform\nsetattr(Platform, 'memory', None)": "assigns",
    "from chiplet.api import INTERFACE_VERSIONS\nINTERFACE_VERSIONS['x'] = (1, 0)": "assigns",
    "from chiplet.api import Platform\nPlatform.memory = None": "assigns",
}


@pytest.mark.parametrize("source", SOURCES, ids=range(len(SOURCES)))
def test_a_package_that_reaches_into_core_is_caught(tmp_path, context, source):
    (tmp_path / "plugin.py").write_text(source)
    found = [run_case(case, subject("package", tmp_path, context)) for case in package_cases()]
    failed = [each.detail for each in found if each.status is Status.FAILED]
    assert len(failed) == 1
    assert failed[0].startswith(SOURCES[source])


def test_a_package_within_the_contract_passes(tmp_path, context):
    (tmp_path / "plugin.py").write_text(
        "from chiplet.api import Yes\nfrom chiplet import api\nimport torch\nself = Yes(1)\n"
    )
    for case in package_cases():
        assert run_case(case, subject("package", tmp_path, context)).status is Status.PASSED


def outcomes_of(provider, context, name="wrong"):
    cases = [each for each in QUICK if each.family == "attention" and each.feature == "plain"][:40]
    return [run_case(case, subject("attention", provider, context)) for case in cases]


def test_a_smaller_supported_set_is_lost(tmp_path, context):
    path = tmp_path / "supported.json"
    snapshot.write(path, outcomes_of(ReferenceAttention(), context))
    assert snapshot.lost(path, outcomes_of(ReferenceAttention(), context), provider=None) == []

    def only_small(request):
        small = request.head_dim <= 16
        return Yes(Tier.GENERIC) if small else No.because("head_dim", f"{request.head_dim}")

    fewer = outcomes_of(Wrong(PlainAttention, verdict=only_small), context)
    lost = snapshot.lost(path, fewer, provider=None)
    assert lost
    assert all(each.startswith("wrong: attention") for each in lost)
    assert len(snapshot.lost(path, [], provider=None)) > len(lost)
    assert snapshot.lost(path, [], provider="another") == []
    with pytest.raises(ConfigError, match="cannot be read"):
        snapshot.lost(tmp_path / "none.json", fewer, provider=None)


def test_the_page_shows_failures_and_reasons_as_text(context):
    outcomes = outcomes_of(ATTENTION["ignored scale"], context)
    outcomes += outcomes_of(
        Wrong(PlainAttention, verdict=lambda request: No.because("shape", "<b>none</b>")), context
    )
    report = Report(
        device="cpu:0", tier="quick", outcomes=outcomes, num_planned=99, seconds=1.0, lost=["x: y"]
    )
    page = report.to_html()
    assert not report.is_green
    assert report.to_json()["badge"]["color"] == "red"
    assert "&lt;b&gt;none" in page
    assert "error" in page
    assert "http" not in page.replace("http-equiv", "")
    assert "x: y" in page


def test_the_command_writes_reports_and_says_what_failed(tmp_path, capsys):
    files = [str(tmp_path / name) for name in ("a.json", "a.html", "supported.json")]
    flags = ["--json", files[0], "--html", files[1], "--update-snapshot", files[2]]
    words = ["conformance", "--device", "reference", "--quick", *flags]
    assert main(words) == 0
    report = json.loads((tmp_path / "a.json").read_text())
    assert report["is_green"] is True
    assert report["counts"]["passed"] > 300
    assert "0 failed" in capsys.readouterr().out
    assert (tmp_path / "a.html").read_text().startswith("<!doctype html>")
    (tmp_path / "supported.json").write_text('["reference: ops/teleport, float32", "gone: x"]')
    words = ["conformance", "--device", "reference", "--provider", "reference", "--quick"]
    assert main([*words, "--snapshot", files[2]]) == 0
    assert main(["conformance", "--device", "reference", "--provider", "nobody"]) == 2


pytest_plugins = ["pytester"]

PROJECT = tomllib.loads((Path(__file__).parents[2] / "core/pyproject.toml").read_text("utf-8"))[
    "project"
]
ENTRY_POINTS = PROJECT["entry-points"]["pytest11"]

PLUGIN_TEST = """
import pytest

@pytest.mark.conformance(device="reference", provider="reference", quick=True)
def test_conformance(conformance):
    conformance.check()
"""


@pytest.fixture
def run_plugin(pytester, monkeypatch):
    """Runs a test file with the kit's plugin alone, whatever is installed besides."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")

    def run(source, *flags):
        pytester.makepyfile(source)
        plugin = ENTRY_POINTS["chiplet"]
        return pytester.runpytest_subprocess("-q", "-p", plugin, *flags)

    return run


def test_the_pytest_plugin_makes_one_test_of_each_case(run_plugin):
    outcomes = run_plugin(PLUGIN_TEST, "-k", "ops_rms or rms_norm").parseoutcomes()
    assert outcomes["passed"] >= 9
    assert "failed" not in outcomes


def test_the_pytest_plugin_refuses_an_unknown_wish(run_plugin):
    result = run_plugin(PLUGIN_TEST.replace("quick=True", "fast=True"))
    assert "and not 'fast'" in result.stdout.str() + result.stderr.str()
