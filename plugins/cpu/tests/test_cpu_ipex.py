"""Intel Extension for PyTorch: whether it is called at all."""

import sys
from dataclasses import replace

import pytest

from chiplet.api import (
    AttentionRequest,
    CheckStatus,
    DeviceProbe,
    Dtype,
    KvSpec,
    No,
    Op,
    OpRequest,
    Yes,
)
from chiplet_cpu import checks, ipex, plugin
from chiplet_cpu.attention.ipex import IpexAttentionProvider
from chiplet_cpu.ops.ipex import IpexOpsProvider

PROBE = DeviceProbe(device_type="cpu", index=0, name="A CPU", total_memory_bytes=1)
ATTENTION = AttentionRequest(
    group="global",
    num_heads=6,
    num_kv_heads=2,
    head_dim=32,
    scale=0.2,
    dtype=Dtype.BFLOAT16,
    kv=KvSpec(num_kv_heads=2, head_dim=32, page_size=16, dtype=Dtype.BFLOAT16),
)
NORM = OpRequest(op=Op.RMS_NORM, dtype=Dtype.BFLOAT16)


@pytest.mark.parametrize(
    ("extension", "torch_version", "words"),
    [
        ("2.8.0", "2.8.0", ""),
        ("2.8.0+cpu", "2.8.1+cu128", ""),
        ("2.8.0", "2.13.0+cpu", "goes with torch 2.8, torch 2.13.0"),
        ("2.8.0", "2.80.0", "goes with torch 2.8"),
        ("2.8.0", "", "torch none is installed"),
        ("", "2.8.0", "is not installed"),
    ],
)
def test_versions_must_go_together(extension, torch_version, words):
    assert words in ipex.refusal(extension, torch_version)
    assert bool(words) == bool(ipex.refusal(extension, torch_version))


@pytest.fixture
def installed(monkeypatch):
    """An extension of 2.8.0 among this environment's distributions, beside some torch."""

    def install(torch_version):
        versions = {"torch": torch_version, ipex.DISTRIBUTION: "2.8.0"}
        monkeypatch.setattr(ipex, "_version", lambda name: versions[name])

    return install


def test_another_torch_is_refused_before_any_import(installed, monkeypatch):
    installed("2.13.0")
    monkeypatch.setitem(sys.modules, "intel_extension_for_pytorch", None)  # cannot be imported
    for provider, request in ((IpexAttentionProvider(), ATTENTION), (IpexOpsProvider(), NORM)):
        verdict = provider.assess(request)
        assert isinstance(verdict, No)
        assert "goes with torch 2.8" in verdict.reasons[0].text
        assert "pip uninstall" in verdict.reasons[0].hint


def test_it_never_comes_before_another_of_the_plugin(installed):
    installed("2.8.0")
    for providers, request in (
        (plugin.attention(device=PROBE), ATTENTION),
        (plugin.ops(device=PROBE), NORM),
    ):
        scores = {each.name: each.assess(request) for each in providers}
        mine = scores.pop("ipex")
        assert isinstance(mine, Yes)
        served = [each.score for each in scores.values() if isinstance(each, Yes)]
        assert served
        assert mine.score < min(served)


def test_doctor_says_that_it_is_retired(installed, monkeypatch):
    found = {each.name: each for each in checks.run_checks(PROBE)}
    assert ("cpu extension" in found) == bool(ipex.installed())
    for torch_version, status in (
        ("2.8.0", CheckStatus.OK),
        ("2.13.0", CheckStatus.WARNING),
    ):
        installed(torch_version)
        found = {each.name: each for each in checks.run_checks(PROBE)}["cpu extension"]
        assert found.status is status
        assert "retired" in found.detail
        assert bool(found.remedy) == (status is CheckStatus.WARNING)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"window": 1}, "window"),
        ({"window": 20, "softcap": 5.0}, "softcap"),
        ({"softcap": 0.0}, "softcap"),
        ({"scale": 0.0}, "scale"),
        ({"kv": replace(ATTENTION.kv, page_size=256)}, "page size"),
    ],
)
def test_what_its_kernels_get_wrong_is_refused(installed, change, code):
    installed("2.8.0")
    verdict = IpexAttentionProvider().assess(replace(ATTENTION, **change))
    assert isinstance(verdict, No)
    assert [each.code for each in verdict.reasons] == [code]


def test_other_operations_are_refused(installed):
    installed("2.8.0")
    verdict = IpexOpsProvider().assess(OpRequest(op=Op.SAMPLE, dtype=Dtype.FLOAT32))
    assert isinstance(verdict, No)
    assert "rotary" in verdict.reasons[0].text
