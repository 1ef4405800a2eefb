"""Formats that quantize plain weights, against formulas written with NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from chiplet.api import LayerFacts, QuantizationFormat
from chiplet.config import DeviceOptions
from chiplet.errors import ConfigError, ModelError
from chiplet.formats.quantization.fp4 import Mxfp4, Nvfp4
from chiplet.formats.quantization.fp8 import DynamicFp8Channels, Fp8Channels
from chiplet.formats.quantization.head import WithHead
from chiplet.formats.quantization.int4 import Int4Groups
from chiplet.formats.quantization.int8 import Int8Channels
from chiplet.formats.quantization.registry import find_format, formats_of
from chiplet.plugins import discover
from chiplet.reference.quantization import dequantize, scales_shape, unpack_halves
from chiplet.testing.formats import check_quantization_format

FORMATS = [
    Int8Channels(),
    Fp8Channels(),
    DynamicFp8Channels(),
    Int4Groups(),
    Mxfp4(),
    Nvfp4(),
]


def layer(role: str, in_features: int) -> LayerFacts:
    name = f"model.layers.0.{role}"
    return LayerFacts(name=name, role=role, in_features=in_features, out_features=8)


@pytest.mark.parametrize("subject", FORMATS, ids=lambda each: each.name)
def test_formats_pass_the_kit(subject: QuantizationFormat) -> None:
    check_quantization_format(subject)


def weight_of(num_rows: int, num_columns: int) -> torch.Tensor:
    weight = torch.randn(num_rows, num_columns, generator=torch.Generator().manual_seed(3))
    weight[0] = 0
    weight[1] = weight[1].abs() + 1
    weight[2] = 1e-42
    weight[3, 0] = 1000
    return weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_int8_is_rounded_to_the_nearest_code(dtype: torch.dtype) -> None:
    weight = weight_of(9, 33).to(dtype)
    format_ = Int8Channels()
    scheme = format_.scheme(layer("o_proj", 33))
    assert scheme is not None
    got = format_.quantize(weight, scheme)
    values = weight.double().numpy()
    scales = np.abs(values).max(1) / 127
    np.testing.assert_allclose(got.scales[3:], scales[3:], rtol=1e-6)
    assert got.weight.dtype == torch.int8
    assert int(got.weight.min()) >= -127
    error = np.abs(dequantize(got).double().numpy() - values)
    assert (error <= scales[:, None] * 0.5001 + 1e-40).all()
    assert (got.weight[0] == 0).all()


@pytest.mark.parametrize("format_", [Fp8Channels(), DynamicFp8Channels()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_fp8_is_rounded_to_the_nearest_number(dtype: torch.dtype, format_) -> None:
    weight = weight_of(9, 33).to(dtype)
    scheme = format_.scheme(layer("o_proj", 33))
    assert scheme is not None
    got = format_.quantize(weight, scheme)
    assert got.weight.dtype == torch.float8_e4m3fn
    values = weight.double().numpy()
    largest = np.abs(values).max(1)
    np.testing.assert_allclose(got.scales[3:], largest[3:] / 448, rtol=1e-6)
    error = np.abs(dequantize(got).double().numpy() - values)
    # Three bits of mantissa: half a unit is 1/16 of the number, or half of the smallest step.
    allowed = np.maximum(np.abs(values) / 16, largest[:, None] / 448 * 2.0**-10)
    assert (error <= allowed * 1.0001 + 1e-40).all()
    assert error[3:].max() > 0
    assert (got.weight[0].float() == 0).all()


@pytest.mark.parametrize(("width", "group_size"), [(256, 128), (320, 64), (96, 32), (48, 16)])
def test_int4_is_rounded_to_the_nearest_level(width: int, group_size: int) -> None:
    weight = weight_of(9, width)
    format_ = Int4Groups()
    scheme = format_.scheme(layer("o_proj", width))
    assert scheme is not None
    assert scheme.group_size == group_size
    got = format_.quantize(weight, scheme)
    assert got.scales is not None
    assert got.zero_points is not None
    assert got.scales.shape == got.zero_points.shape == scales_shape(scheme, (9, width))
    groups = weight.double().numpy().reshape(9, -1, group_size)
    steps = (groups.max(-1).clip(min=0) - groups.min(-1).clip(max=0)) / 15
    np.testing.assert_allclose(got.scales[3:], steps[3:], rtol=1e-6)
    codes = unpack_halves(got.weight).numpy().reshape(groups.shape).astype(float)
    assert codes.max() == 15
    assert int(got.zero_points.max()) <= 15
    values = (codes - got.zero_points.numpy()[..., None]) * got.scales.numpy()[..., None]
    np.testing.assert_allclose(dequantize(got), values.reshape(9, width), rtol=1e-6)
    # The zero point is rounded too, so that the ends of the range may lose a step's half more.
    assert (np.abs(values - groups) <= steps[..., None] * 1.0001 + 1e-40).all()
    assert (values[0] == 0).all()


E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
E2M1 = np.concatenate([E2M1, -E2M1])


def nearest_fp4(ratios: np.ndarray) -> np.ndarray:
    """The number of E2M1 next to each ratio; of a tie the one with the even code."""
    distances = np.abs(ratios[..., None] - E2M1)
    distances[..., 1::2] += 1e-9 * np.abs(ratios)[..., None]
    return E2M1[distances.argmin(-1)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mxfp4_takes_the_better_of_two_powers(dtype: torch.dtype) -> None:
    weight = weight_of(9, 96).to(dtype)
    format_ = Mxfp4()
    scheme = format_.scheme(layer("o_proj", 96))
    assert scheme is not None
    got = format_.quantize(weight, scheme)
    groups = weight.double().numpy().reshape(9, 3, 32)
    values = dequantize(got).double().numpy().reshape(groups.shape)
    power = 2.0 ** (got.scales.numpy().astype(float) - 127)[..., None]
    np.testing.assert_array_equal(values[3:], (nearest_fp4(groups / power) * power)[3:])
    # The power of the specification, which cuts off what lies above 6 of its units.
    largest = np.abs(groups).max(-1, keepdims=True)
    plain = 2.0 ** (np.floor(np.log2(largest[3:])) - 2)
    plain_error = ((nearest_fp4(groups[3:] / plain) * plain - groups[3:]) ** 2).sum(-1)
    error = ((values - groups)[3:] ** 2).sum(-1)
    assert (error <= plain_error).all()
    assert (error < plain_error).any()
    assert (np.abs(values[:3] - groups[:3]) <= largest[:3] / 3 + 1e-40).all()
    assert (values[0] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nvfp4_takes_the_better_of_two_scales(dtype: torch.dtype) -> None:
    weight = weight_of(9, 96).to(dtype)
    format_ = Nvfp4()
    scheme = format_.scheme(layer("o_proj", 96))
    assert scheme is not None
    got = format_.quantize(weight, scheme)
    assert got.global_scales is not None
    groups = weight.double().numpy().reshape(9, 6, 16)
    values = dequantize(got).double().numpy().reshape(groups.shape)
    level = got.global_scales.double().numpy()
    np.testing.assert_allclose(level[3:], np.abs(groups[3:]).max((1, 2)) / (6 * 448), rtol=1e-6)
    scale = got.scales.double().numpy()[..., None] * level[:, None, None]
    unit = np.where(scale > 0, scale, 1)
    wanted = np.where(scale > 0, nearest_fp4(groups / unit) * unit, 0)
    # In float32 a ratio may fall on the other side of a middle, to a number as near.
    error = np.abs(values - groups)[3:]
    assert (error <= np.abs(wanted - groups)[3:] + 1e-6 * np.abs(wanted)[3:]).all()
    share = np.abs(groups[3:]).max(-1) / np.maximum(scale[3:, :, 0], 1e-40)
    is_four = share < 5
    assert is_four.any()
    assert not is_four.all()
    assert (values[0] == 0).all()
    assert (error[1:] ** 2).mean() < 0.012 * (groups[4:] ** 2).mean()


def test_fp4_refuses_what_no_group_divides() -> None:
    with pytest.raises(ConfigError, match="o_proj has 80 input features, which groups of 32"):
        Mxfp4().scheme(layer("o_proj", 80))
    assert Nvfp4().scheme(layer("o_proj", 80)) is not None


@pytest.mark.parametrize("format_", FORMATS, ids=lambda each: each.name)
def test_rows_do_not_depend_on_their_neighbours(format_, monkeypatch) -> None:
    weight = weight_of(9, 64)
    scheme = format_.scheme(layer("o_proj", 64))
    whole = format_.quantize(weight, scheme)
    monkeypatch.setattr("chiplet.formats.quantization.rounding._SLICE_ELEMENTS", 130)
    assert torch.equal(format_.quantize(weight, scheme).weight, whole.weight)


@pytest.mark.parametrize("format_", FORMATS, ids=lambda each: each.name)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_numbers_that_are_none_are_refused(format_, value) -> None:
    weight = weight_of(9, 64)
    weight[8, 63] = value
    with pytest.raises(ModelError, match="NaN or infinity"):
        format_.quantize(weight, format_.scheme(layer("o_proj", 64)))


@pytest.mark.parametrize("format_", FORMATS, ids=lambda each: each.name)
@pytest.mark.parametrize("role", ["lm_head", "router"])
def test_sensitive_layers_stay_plain(format_, role) -> None:
    assert format_.scheme(layer(role, 64)) is None


def test_int4_refuses_what_no_group_divides() -> None:
    with pytest.raises(ConfigError, match="o_proj has 100 input features"):
        Int4Groups().scheme(layer("o_proj", 100))


def test_formats_are_found_by_name() -> None:
    formats = discover(DeviceOptions()).quantization_formats()
    assert {each.name for each in formats} >= {
        "int8",
        "fp8",
        "fp8-dynamic",
        "int4",
        "mxfp4",
        "nvfp4",
    }
    assert find_format(formats, "none") is None
    found = find_format(formats, "int4")
    assert found is not None
    assert found.name == "int4"
    with pytest.raises(ConfigError, match=r"'int5'; allowed: none, .*fp8, .*int4, int8"):
        find_format(formats, "int5")


@pytest.mark.parametrize("format_", FORMATS, ids=lambda each: each.name)
def test_the_head_is_quantized_on_request(format_: QuantizationFormat) -> None:
    head, other = layer("lm_head", 96), layer("o_proj", 96)
    assert format_.scheme(head) is None
    alone = WithHead(None, format_)
    scheme = alone.scheme(head)
    assert scheme == format_.scheme(other)
    assert scheme is not None
    assert alone.scheme(other) is None
    got, expected = (each.quantize(weight_of(9, 96), scheme) for each in (alone, format_))
    assert torch.equal(dequantize(got), dequantize(expected))
    assert WithHead(format_, format_).scheme(other) == scheme


def test_head_and_layers_may_have_different_formats() -> None:
    both = formats_of(FORMATS, layers="int4", head="fp8")
    assert both is not None
    for role, format_ in (("lm_head", Fp8Channels()), ("o_proj", Int4Groups())):
        scheme = both.scheme(layer(role, 128))
        assert scheme == format_.scheme(layer("o_proj", 128))
        assert scheme is not None
        weight = weight_of(9, 128)
        got, expected = both.quantize(weight, scheme), format_.quantize(weight, scheme)
        assert torch.equal(dequantize(got), dequantize(expected))
    assert formats_of(FORMATS, layers="none", head="none") is None
    found = formats_of(FORMATS, layers="int4", head="none")
    assert found is not None
    assert found.name == "int4"


class _Renamed(Int8Channels):
    name = "other"


class _Timid(Int8Channels):
    name = "timid"

    def scheme(self, layer: LayerFacts) -> None:
        """Plain, all of them."""


def test_what_the_head_cannot_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="'timid', which leaves the head plain"):
        WithHead(None, _Timid()).scheme(layer("lm_head", 96))
    both = WithHead(Int8Channels(), _Renamed())
    both.scheme(layer("o_proj", 96))
    with pytest.raises(ConfigError, match="'int8' and 'other' both store weights as"):
        both.scheme(layer("lm_head", 96))
