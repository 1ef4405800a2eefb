"""Linear layers by the plugin's own kernels, on every instruction set that this processor runs."""

import pytest
import torch

from chiplet.api import (
    BuildContext,
    Coding,
    DeviceProbe,
    Dtype,
    Granularity,
    LinearRequest,
    LinearWeights,
    No,
    WeightScheme,
)
from chiplet.testing.conformance import check_linear
from chiplet_cpu import native
from chiplet_cpu.linear.native import NativeLinearProvider
from chiplet_cpu.platform import CpuPlatform

PROBE = DeviceProbe(device_type="cpu", index=0, name="A CPU", total_memory_bytes=1)
CONTEXT = BuildContext(CpuPlatform(PROBE))
ISAS = native.instruction_sets() if native.is_available() else ()
PROVIDER = NativeLinearProvider()
CODINGS = (None, Coding.Q4_0, Coding.Q4_1, Coding.Q8_0)


@pytest.fixture(params=ISAS)
def isa(request):
    before = native.instruction_set()
    native.use_instruction_set(request.param)
    yield request.param
    native.use_instruction_set(before)


@pytest.fixture(params=[1, 3])
def threads(request):
    native.set_threads(request.param)
    yield request.param
    native.set_threads(1)


def linear_request(coding, dtype=Dtype.FLOAT32, shape=(64, 192), has_bias=False):
    scheme = coding and WeightScheme(coding=coding, granularity=Granularity.PACKED)
    return LinearRequest(
        role="down_proj",
        in_features=shape[1],
        out_features=shape[0],
        dtype=dtype,
        has_bias=has_bias,
        scheme=scheme,
    )


@pytest.mark.parametrize("num_tokens", [1, 2, 7, 129, 250])
@pytest.mark.parametrize("dtype", list(Dtype))
@pytest.mark.parametrize("coding", CODINGS)
def test_conformance(isa, coding, dtype, num_tokens):
    request = linear_request(coding, dtype, has_bias=num_tokens % 2 == 1)
    assert check_linear(PROVIDER, request, CONTEXT, num_tokens=num_tokens)


@pytest.mark.parametrize("shape", [(1, 32), (15, 288), (17, 576), (200, 1536)])
@pytest.mark.parametrize("coding", CODINGS)
def test_shapes_that_fill_no_panel_or_stretch(isa, threads, coding, shape):
    for num_tokens in (1, 5, 13):
        request = linear_request(coding, shape=shape, has_bias=True)
        assert check_linear(PROVIDER, request, CONTEXT, num_tokens=num_tokens)


def test_inputs_of_any_width(isa):
    for in_features in (1, 3, 255, 257, 515):
        request = linear_request(None, shape=(33, in_features))
        assert check_linear(PROVIDER, request, CONTEXT, num_tokens=4)


def test_float32_weights_of_a_bfloat16_checkpoint_are_packed_without_loss(isa):
    impl = PROVIDER.build(linear_request(None), CONTEXT)
    random = torch.Generator().manual_seed(1)
    weight = torch.randn(64, 192, generator=random)
    x = torch.randn(3, 192, generator=random)
    short = weight.bfloat16().float()
    packed = impl.pack(LinearWeights(scheme=None, weight=short))
    assert packed.data.nbytes == 64 * 192 * 2
    exact = x.double() @ short.double().t()
    assert torch.allclose(impl.run(x, packed).double(), exact, atol=1e-4)
    assert impl.pack(LinearWeights(scheme=None, weight=weight)).data.nbytes == 64 * 192 * 4


def test_packed_blocks_take_no_more_room_than_the_checkpoint(isa):
    for coding in CODINGS[1:]:
        size_bytes = 64 * 192 // 32 * coding.block.size_bytes
        blocks = torch.zeros(64, size_bytes // 64, dtype=torch.uint8)
        request = linear_request(coding)
        weights = LinearWeights(scheme=request.scheme, weight=blocks)
        assert PROVIDER.build(request, CONTEXT).pack(weights).data.nbytes == size_bytes


def test_refusals_say_why(monkeypatch):
    unknown = PROVIDER.assess(linear_request(Coding.Q6_K, shape=(64, 256)))
    assert isinstance(unknown, No)
    monkeypatch.setattr(native, "library", None)
    verdict = PROVIDER.assess(linear_request(None))
    assert isinstance(verdict, No)
    assert verdict.reasons[0].code == "build"
