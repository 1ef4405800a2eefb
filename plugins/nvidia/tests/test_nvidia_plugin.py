"""Probe, platform and hooks: without a GPU, and on one."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from chiplet.api import BuildContext, DeviceProbe, Dtype, EngineConfig, HostFacts, LinearRequest
from chiplet.testing.conformance import check_linear
from chiplet_nvidia import plugin
from chiplet_nvidia.platform import CudaPlatform

HOST = HostFacts(machine="x86_64", num_cores=2, total_memory_bytes=1 << 30)


def device(device_type="cuda", capability="9.0"):
    return DeviceProbe(
        device_type=device_type,
        index=0,
        name="A GPU",
        total_memory_bytes=1,
        facts={"capability": capability},
    )


def test_the_module_of_hooks_imports_no_torch():
    code = "import sys; from chiplet_nvidia import plugin; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_gpu_is_no_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert plugin.probe(host=HOST) == []


def test_bfloat16_comes_first_where_the_gpu_computes_in_it():
    assert plugin.platform(device=device()).supported_dtypes()[0] == "bfloat16"
    assert "bfloat16" not in plugin.platform(device=device(capability="7.5")).supported_dtypes()


def test_nothing_is_offered_for_other_devices():
    assert plugin.linear(device=device("cpu")) == []
    assert plugin.config_proposals(config=EngineConfig(), device=device("cpu")) == []
    assert plugin.config_proposals(config=EngineConfig(), device=device())


@pytest.mark.parametrize(("gib", "num_requests"), [(80, 256), (141, 512)])
def test_more_requests_run_at_once_where_memory_keeps_their_contexts(gib, num_requests):
    probe = replace(device(), total_memory_bytes=gib << 30)
    proposed = {
        each.path: each.value
        for each in plugin.config_proposals(config=EngineConfig(), device=probe)
    }
    assert proposed["schedule.max_running_requests"] == num_requests


@pytest.mark.device
@pytest.mark.parametrize("num_tokens", [1, 7, 129])
@pytest.mark.parametrize("dtype", list(Dtype))
def test_products(dtype, num_tokens):
    (probe, *_) = plugin.probe(host=HOST)
    platform = CudaPlatform(probe)
    platform.activate()
    (provider, *_) = plugin.linear(device=probe)
    request = LinearRequest(
        role="x", in_features=192, out_features=64, dtype=dtype, has_bias=num_tokens > 1
    )
    assert check_linear(provider, request, BuildContext(platform), num_tokens=num_tokens)


@pytest.mark.device
def test_copies_arrive_in_order():
    (probe, *_) = plugin.probe(host=HOST)
    platform = CudaPlatform(probe)
    platform.activate()
    there = platform.to_device_async(torch.arange(1000))
    back = platform.to_host_async(there + 1)
    event = platform.record_event()
    event.wait()
    assert event.is_done()
    assert torch.equal(back, torch.arange(1, 1001))
    assert 0 < platform.memory().free_bytes <= platform.memory().total_bytes
