"""Linear layers by the plugin's own kernels, on every instruction set that this processor runs."""

from dataclasses import replace

import pytest
import torch

from chiplet.api import (
    Activations,
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
from chiplet.testing.conformance import check_linear, dequantize, random_weights
from chiplet_cpu import native
from chiplet_cpu.linear.native import NativeInt8Provider, NativeLinearProvider
from chiplet_cpu.platform import CpuPlatform

PROBE = DeviceProbe(device_type="cpu", index=0, name="A CPU", total_memory_bytes=1)
CONTEXT = BuildContext(CpuPlatform(PROBE))
PROVIDER = NativeLinearProvider()
BLOCKS = (Coding.Q4_0, Coding.Q4_1, Coding.Q8_0, Coding.Q4_K, Coding.Q5_K, Coding.Q6_K)
BOTH = [
    *((PROVIDER, coding) for coding in (None, *BLOCKS)),
    *((NativeInt8Provider(), coding) for coding in BLOCKS),
]
both = pytest.mark.parametrize(
    ("provider", "coding"), BOTH, ids=[f"{each.name}-{coding}" for each, coding in BOTH]
)


@pytest.fixture
def tiles_model():
    before = native.instruction_set()
    native.use_instruction_set(native.TILES_MODEL)
    yield
    native.use_instruction_set(before)


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
@both
def test_conformance(isa, provider, coding, dtype, num_tokens):
    request = linear_request(coding, dtype, (64, 256), has_bias=num_tokens % 2 == 1)
    assert check_linear(provider, request, CONTEXT, num_tokens=num_tokens)


@pytest.mark.parametrize("shape", [(3, 1), (15, 9), (17, 18), (200, 6)])
@both
def test_shapes_that_fill_no_panel_or_stretch(isa, threads, provider, coding, shape):
    elements = 32 if coding is None else coding.block.elements
    for num_tokens in (1, 5, 13):
        request = linear_request(coding, shape=(shape[0], shape[1] * elements), has_bias=True)
        assert check_linear(provider, request, CONTEXT, num_tokens=num_tokens)


def check_gates(provider, request):
    """Widths that fill panels, and one that does not; rows of few and of many tiles."""
    for width, num_tokens in ((48, 1), (48, 2), (16, 3), (48, 41), (16, 250), (24, 5)):
        gated = replace(request, out_features=2 * width, is_gated=True, has_bias=width != 16)
        assert check_linear(provider, gated, CONTEXT, num_tokens=num_tokens)


GATED = [*BOTH, (NativeInt8Provider(), "int4"), (NativeInt8Provider(), "int8")]


@pytest.mark.parametrize("dtype", [Dtype.FLOAT32, Dtype.BFLOAT16])
@pytest.mark.parametrize(
    ("provider", "coding"), GATED, ids=[f"{each.name}-{coding}" for each, coding in GATED]
)
def test_gates(isa, threads, provider, coding, dtype):
    check_gates(provider, gated_request(coding, dtype))


@pytest.mark.parametrize("coding", [None, Coding.Q4_K, "int4", "int8"])
def test_gates_on_tiles(tiles_model, coding):
    provider = PROVIDER if coding is None else NativeInt8Provider()
    check_gates(provider, gated_request(coding, Dtype.BFLOAT16))


def gated_request(coding, dtype):
    schemes = {
        "int4": WeightScheme(coding=Coding.INT4, granularity=Granularity.GROUP, group_size=64),
        "int8": WeightScheme(
            coding=Coding.INT8, granularity=Granularity.CHANNEL, activations=Activations.PER_TOKEN
        ),
    }
    request = linear_request(coding if coding not in schemes else None, dtype, (32, 256))
    return replace(request, scheme=schemes.get(coding, request.scheme))


def test_a_gate_of_the_product_rounds_once(isa):
    """The halves stay float32: closer to the exact result than an operation on bfloat16."""
    random = torch.Generator().manual_seed(4)
    weight = torch.randn(64, 128, generator=random).bfloat16()
    x = torch.randn(30, 128, generator=random).bfloat16()
    request = replace(linear_request(None, Dtype.BFLOAT16, (64, 128)), is_gated=True)
    impl = PROVIDER.build(request, CONTEXT)
    packed = impl.pack(LinearWeights(scheme=None, weight=weight))
    gate, up = (x.double() @ weight.double().T).chunk(2, dim=1)
    exact = torch.nn.functional.silu(gate) * up
    joint = (impl.run_silu_mul(x, packed).double() - exact).abs().mean()
    apart = (impl._silu_mul(impl.run(x, packed)).double() - exact).abs().mean()
    assert joint < 0.8 * apart


@pytest.mark.parametrize("num_tokens", [1, 2, 13, 129])
@pytest.mark.parametrize("dtype", [Dtype.FLOAT32, Dtype.BFLOAT16])
@pytest.mark.parametrize("has_zero_points", [False, True])
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_groups_of_int4(isa, group_size, has_zero_points, dtype, num_tokens):
    scheme = WeightScheme(
        coding=Coding.INT4,
        granularity=Granularity.GROUP,
        group_size=group_size,
        has_zero_points=has_zero_points,
    )
    request = replace(linear_request(None, dtype, (33, 256), has_bias=True), scheme=scheme)
    for provider in (PROVIDER, NativeInt8Provider()):
        assert check_linear(provider, request, CONTEXT, num_tokens=num_tokens)


@pytest.mark.parametrize("num_tokens", [1, 2, 13, 129])
@pytest.mark.parametrize("dtype", list(Dtype))
@pytest.mark.parametrize("shape", [(3, 1), (33, 130), (64, 1023)])
def test_int8_per_channel(isa, threads, shape, dtype, num_tokens):
    scheme = WeightScheme(
        coding=Coding.INT8, granularity=Granularity.CHANNEL, activations=Activations.PER_TOKEN
    )
    request = replace(linear_request(None, dtype, shape, has_bias=True), scheme=scheme)
    assert check_linear(NativeInt8Provider(), request, CONTEXT, num_tokens=num_tokens)
    assert not check_linear(PROVIDER, request, CONTEXT, num_tokens=num_tokens)


@pytest.mark.parametrize("coding", BLOCKS)
def test_rows_are_those_of_the_weight(isa, threads, coding):
    request = replace(linear_request(coding, Dtype.BFLOAT16, (100, 768)), gives_rows=True)
    impl = PROVIDER.build(request, CONTEXT)
    weights = random_weights(request.scheme, (100, 768), torch.Generator().manual_seed(3), 1.0)
    row_ids = torch.tensor([0, 99, 17, 17, 64, 5], dtype=torch.int32)
    rows = impl.rows(row_ids, impl.pack(weights))
    assert rows.dtype is torch.bfloat16
    torch.testing.assert_close(rows, dequantize(weights)[row_ids.long()].bfloat16())


@pytest.mark.parametrize("shape", [(100, 768), (17, 70)])
def test_rows_of_int8(isa, threads, shape):
    scheme = WeightScheme(
        coding=Coding.INT8, granularity=Granularity.CHANNEL, activations=Activations.PER_TOKEN
    )
    request = replace(linear_request(None, Dtype.BFLOAT16, shape), scheme=scheme, gives_rows=True)
    provider = NativeInt8Provider()
    assert not isinstance(provider.assess(request), No)
    impl = provider.build(request, CONTEXT)
    weights = random_weights(scheme, shape, torch.Generator().manual_seed(4), 1.0)
    row_ids = torch.tensor([0, shape[0] - 1, 5, 5, 16], dtype=torch.int32)
    rows = impl.rows(row_ids, impl.pack(weights))
    torch.testing.assert_close(rows, dequantize(weights)[row_ids.long()].bfloat16())


def test_a_row_does_not_depend_on_the_others(isa):
    x = torch.randn(40, 512, generator=torch.Generator().manual_seed(5))
    for coding in BLOCKS:
        request = linear_request(coding, shape=(48, 512))
        impl = NativeInt8Provider().build(request, CONTEXT)
        weights = random_weights(request.scheme, (48, 512), torch.Generator().manual_seed(6), 0.05)
        packed = impl.pack(weights)
        together = impl.run(x, packed)
        for index in (0, 11, 12, 39):
            assert torch.equal(impl.run(x[index : index + 1], packed)[0], together[index])


def test_rounding_is_that_of_eight_bits(isa):
    """Codes times scales of a row, against the same formula in float64."""
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(7))
    x[1] = 0
    x[2, :32] *= 1e-38  # too small for an inverse
    request = linear_request(Coding.Q4_1, shape=(20, 64))
    impl = NativeInt8Provider().build(request, CONTEXT)
    weights = random_weights(request.scheme, (20, 64), torch.Generator().manual_seed(8), 0.1)
    groups = x.double().unflatten(1, (2, 32))
    scales = groups.abs().amax(-1, keepdim=True) / 127
    rounded = (groups / scales.clamp(min=1e-30)).round() * scales
    rounded[2, 0] = 0
    exact = rounded.flatten(1) @ dequantize(weights).double().t()
    error = (impl.run(x, impl.pack(weights)).double() - exact).abs()
    # A value half-way between two codes may round either way in another precision.
    assert float(error.quantile(0.9)) < 1e-5
    assert float(error.max()) < 2e-2


@pytest.mark.parametrize("coding", BLOCKS)
def test_many_rows_keep_the_precision_of_eight_bits(isa, coding):
    """Whole and cut spans, and a weight whose groups differ in size by much."""
    for in_features in (256, 768, 1280):
        request = linear_request(coding, shape=(40, in_features))
        impl = NativeInt8Provider().build(request, CONTEXT)
        weights = random_weights(
            request.scheme, (40, in_features), torch.Generator().manual_seed(2), 0.05
        )
        x = torch.randn(60, in_features, generator=torch.Generator().manual_seed(3))
        exact = x.double() @ dequantize(weights).double().t()
        error = impl.run(x, impl.pack(weights)).double() - exact
        assert float(error.norm() / exact.norm()) < 0.02


TILED = [
    linear_request(Coding.Q4_1, Dtype.BFLOAT16, (40, 416), has_bias=True),
    linear_request(Coding.Q6_K, Dtype.FLOAT32, (64, 768)),
    replace(linear_request(None, Dtype.BFLOAT16, (70, 201)), has_bias=True),
    replace(linear_request(None, Dtype.BFLOAT16, (32, 64))),
    replace(
        linear_request(None, Dtype.FLOAT16, (33, 131)),
        scheme=WeightScheme(
            coding=Coding.INT8, granularity=Granularity.CHANNEL, activations=Activations.PER_TOKEN
        ),
    ),
]


@pytest.mark.parametrize("request_", TILED, ids=str)
@pytest.mark.parametrize("num_tokens", [1, 16, 17, 48, 70])
def test_products_by_tile_registers(tiles_model, threads, request_, num_tokens):
    """Packing, spans, tails and loops of AMX's kernels, on a model of its registers."""
    provider = PROVIDER if request_.scheme is None else NativeInt8Provider()
    assert check_linear(provider, request_, CONTEXT, num_tokens=num_tokens)


def test_an_unknown_instruction_set_is_refused():
    with pytest.raises(ValueError, match="'sse1' cannot be used; choose one of portable"):
        native.use_instruction_set("sse1")


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
    for coding in BLOCKS:
        size_bytes = 64 * 512 // coding.block.elements * coding.block.size_bytes
        blocks = torch.zeros(64, size_bytes // 64, dtype=torch.uint8)
        request = linear_request(coding, shape=(64, 512))
        weights = LinearWeights(scheme=request.scheme, weight=blocks)
        packed_bytes = PROVIDER.build(request, CONTEXT).pack(weights).data.nbytes
        # The six-bit scales of two codings take eight bits.
        assert size_bytes <= packed_bytes <= 1.03 * size_bytes


def test_refusals_say_why(monkeypatch):
    int8 = NativeInt8Provider()
    for provider in (PROVIDER, int8):
        unknown = provider.assess(linear_request(Coding.Q5_0))
        assert isinstance(unknown, No)
        assert unknown.reasons[0].code == "scheme"
        cut = provider.assess(linear_request(Coding.Q6_K, shape=(64, 128)))
        assert isinstance(cut, No)
        assert cut.reasons[0].code == "shape"
    assert isinstance(int8.assess(linear_request(None)), No)
    monkeypatch.setattr(native, "library", None)
    for provider in (PROVIDER, int8):
        verdict = provider.assess(linear_request(None))
        assert isinstance(verdict, No)
        assert verdict.reasons[0].code == "build"
