"""Formats that quantize plain weights, against formulas written with NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from chiplet.api import LayerFacts, QuantizationFormat
from chiplet.config import DeviceOptions
from chiplet.errors import ConfigError, ModelError
from chiplet.formats.quantization.fp8 import Fp8Channels
from chiplet.formats.quantization.int4 import Int4Groups
from chiplet.formats.quantization.int8 import Int8Channels
from chiplet.formats.quantization.registry import find_format
from chiplet.plugins import discover
from chiplet.reference.quantization import dequantize, scales_shape, unpack_halves
from chiplet.testing.formats import check_quantization_format

FORMATS = [Int8Channels(), Fp8Channels(), Int4Groups()]


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_fp8_is_rounded_to_the_nearest_number(dtype: torch.dtype) -> None:
    weight = weight_of(9, 33).to(dtype)
    format_ = Fp8Channels()
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
    assert {each.name for each in formats} >= {"int8", "fp8", "int4"}
    assert find_format(formats, "none") is None
    found = find_format(formats, "int4")
    assert found is not None
    assert found.name == "int4"
    with pytest.raises(ConfigError, match=r"'int5'; allowed: none, .*fp8, int4, int8"):
        find_format(formats, "int5")
