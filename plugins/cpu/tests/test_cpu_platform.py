"""Probe, platform and hooks of the CPU plugin."""

import subprocess
import sys

import pytest
import torch

from chiplet.api import CheckStatus, DeviceProbe, EngineConfig, HostFacts
from chiplet_cpu import native, plugin
from chiplet_cpu.host import memory_info, probe_device, usable_cores
from chiplet_cpu.platform import CpuPlatform

HOST = HostFacts(machine="x86_64", num_cores=2, total_memory_bytes=1 << 30)


def device(isa="", device_type="cpu"):
    return DeviceProbe(
        device_type=device_type, index=0, name="A CPU", total_memory_bytes=1, facts={"isa": isa}
    )


def test_probe_reads_name_and_instruction_sets(tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(
        "processor : 0\nmodel name\t: Acme 9000\nflags\t\t: fpu avx2 avx512_bf16\n\n"
        "processor : 1\nmodel name\t: Other\nflags\t\t: fpu\n"
    )
    found = probe_device(HOST, tmp_path)
    assert (found.device_type, found.index, found.name) == ("cpu", 0, "Acme 9000")
    assert found.facts["isa"] == "avx2 avx512_bf16"
    assert found.total_memory_bytes > 0


def test_probe_without_cpuinfo(tmp_path):
    found = probe_device(HOST, tmp_path)
    assert found.name
    assert found.facts["isa"] == ""


def test_hooks_import_no_torch_until_a_device_is_used():
    code = (
        "import sys; from chiplet_cpu import plugin; from chiplet.api import HostFacts;"
        "plugin.probe(HostFacts(machine='x', num_cores=1, total_memory_bytes=1));"
        "plugin.doctor(None); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_bfloat16_comes_first_where_the_processor_has_it():
    assert CpuPlatform(device("avx2 avx512_bf16")).supported_dtypes()[0] == "bfloat16"
    assert CpuPlatform(device("amx_bf16")).supported_dtypes()[0] == "bfloat16"
    assert CpuPlatform(device("avx2")).supported_dtypes()[0] == "float32"


@pytest.mark.parametrize("given", [None, "3"])
def test_activate_takes_the_cores_or_what_the_user_set(monkeypatch, given):
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    try:
        CpuPlatform(device()).activate()
        expected = {int(given)} if given else range(1, usable_cores() + 1)
        assert torch.get_num_threads() in expected
    finally:
        torch.set_num_threads(before)
        native.set_threads(1)


def test_memory_is_within_bounds():
    memory = memory_info()
    assert 0 < memory.free_bytes <= memory.total_bytes


def test_offers_nothing_for_other_devices():
    other = device(device_type="elsewhere")
    for hook in (plugin.attention, plugin.linear, plugin.ops):
        assert not list(hook(device=other))
        assert list(hook(device=device()))
    assert not plugin.config_proposals(config=EngineConfig(), device=other)


def test_doctor():
    checks = {check.name: check for check in plugin.doctor(device=device("avx2 amx_bf16"))}
    assert checks["cpu instruction sets"].status is CheckStatus.OK
    checks = {check.name: check for check in plugin.doctor(device=device("avx2"))}
    assert checks["cpu instruction sets"].status is CheckStatus.OK, "nobody can mend a processor"
    assert "float32 is preferred" in checks["cpu instruction sets"].detail
    assert not plugin.doctor(device=None)
