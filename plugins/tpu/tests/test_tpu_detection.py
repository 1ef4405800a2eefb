"""Detection, choices and refusals: they need neither jax nor a chip."""

import subprocess
import sys

import pytest

from chiplet.api import ALL_SAMPLING, CompilationRequest, EngineConfig, No, StepLimits
from chiplet_tpu import chips, plugin
from chiplet_tpu.buckets import choose_buckets
from chiplet_tpu.compilation.providers import JaxProvider, TorchXlaProvider

HOST = type("Host", (), {"total_memory_bytes": 8 << 30})()


def pci(root, address, vendor, device):
    folder = root / address
    folder.mkdir()
    (folder / "vendor").write_text(f"0x{vendor:04x}\n")
    (folder / "device").write_text(f"0x{device:04x}\n")


def test_chips_are_found_on_the_bus(tmp_path):
    pci(tmp_path, "0000:00:01.0", 0x8086, 0x1237)
    pci(tmp_path, "0000:00:05.0", 0x1AE0, 0x6F)
    pci(tmp_path, "0000:00:06.0", 0x1AE0, 0x76)
    pci(tmp_path, "0000:00:07.0", 0x1AE0, 0x42)  # a network card of the same vendor
    found = chips.find_chips(tmp_path)
    assert [each.name for each in found] == ["TPU v6e", "TPU 7x", "TPU 7x"]
    assert [each.index for each in found] == [0, 1, 2]
    assert [each.total_memory_bytes >> 30 for each in found] == [32, 96, 96]


def test_hooks_import_no_compiler():
    code = (
        "import sys; from chiplet_tpu import plugin; plugin.probe(host=None); "
        "assert not {'jax', 'torch', 'torchax', 'torch_xla'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_nothing_is_offered_on_other_devices():
    device = chips.DeviceProbe(device_type="cpu", index=0, name="", total_memory_bytes=0)
    for hook in (plugin.attention, plugin.linear, plugin.ops, plugin.compilation):
        assert hook(device=device) == []
    assert plugin.config_proposals(config=EngineConfig(), device=device) == []


@pytest.mark.parametrize("provider", [JaxProvider, TorchXlaProvider])
def test_a_compiler_that_is_not_installed_says_what_to_install(provider, monkeypatch):
    monkeypatch.setattr("chiplet_tpu.versions.version", _no_version)
    verdict = provider(chips.emulated_chip(HOST)).assess(CompilationRequest())
    assert isinstance(verdict, No)
    assert "not installed" in verdict.reasons[0].text
    assert "pip install" in verdict.reasons[0].hint


def _no_version(name):
    from importlib.metadata import PackageNotFoundError

    raise PackageNotFoundError(name)


@pytest.mark.parametrize("is_emulated", [True, False])
def test_buckets_serve_the_largest_step(is_emulated):
    limits = StepLimits(
        max_tokens=576, max_requests=64, max_pages=512, max_prompt_rows=512, page_size=16
    )
    buckets = choose_buckets(limits, is_emulated=is_emulated)
    assert len(set(buckets)) == len(buckets)
    assert any(each.serves(limits.largest_step) for each in buckets)
    decodes = [each for each in buckets if each.is_decode and each.sampling == ALL_SAMPLING]
    assert max(each.num_requests for each in decodes) == 64


def test_doctor_says_that_torch_xla_ends(monkeypatch):
    monkeypatch.setattr("chiplet_tpu.versions.version", lambda name: "2.9.0")
    checks = {each.name: each for each in plugin.doctor(device=None)}
    assert "end of its line" in checks["tpu compiler torch_xla"].detail
    assert "no TPU" in checks["tpu chips"].detail
