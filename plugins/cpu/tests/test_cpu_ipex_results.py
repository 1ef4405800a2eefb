"""What Intel Extension for PyTorch computes; `make test-ipex` runs it."""

import pytest
import torch

from chiplet.api import BuildContext, DeviceProbe, Dtype, Op, OpRequest
from chiplet.testing.conformance import REFERENCE_OPS
from chiplet_cpu import ipex
from chiplet_cpu.ops.ipex import IpexOpsProvider
from chiplet_cpu.platform import CpuPlatform

if ipex.explanation():
    pytest.skip(f"{ipex.explanation()}; run 'make test-ipex'", allow_module_level=True)

PROBE = DeviceProbe(device_type="cpu", index=0, name="A CPU", total_memory_bytes=1)


@pytest.mark.timeout(600)
@pytest.mark.conformance(device="cpu", provider="ipex")
def test_conformance(conformance):
    conformance.check()


def test_rotary_follows_its_table():
    context = BuildContext(CpuPlatform(PROBE))
    rotary = IpexOpsProvider().build(OpRequest(op=Op.ROTARY, dtype=Dtype.FLOAT32), context)
    random = torch.Generator().manual_seed(1)
    q, k = (torch.randn(5, heads, 16, generator=random) for heads in (4, 2))
    positions = torch.arange(5, dtype=torch.int32)
    for _ in range(2):
        table = torch.randn(9, 16, generator=random)
        expected = REFERENCE_OPS[Op.ROTARY](q, k, positions, table)
        for result, want in zip(rotary(q, k, positions, table), expected, strict=True):
            torch.testing.assert_close(result, want)
