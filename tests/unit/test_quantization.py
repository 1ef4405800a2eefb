"""Canonical tensors against formulas written with NumPy, scheme by scheme."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from chiplet.api import Activations, Coding, Feature, Granularity, LinearRequest, WeightScheme
from chiplet.config import Dtype
from chiplet.reference import quantization
from chiplet.reference.linear import quantized_product
from chiplet.reference.quantization import (
    dequantize,
    dequantize_to,
    pack_halves,
    pieces,
    quantize_activations,
    random_weights,
    unpack_halves,
)
from chiplet.testing.conformance import WEIGHT_SCHEMES

N, K = 192, 256
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def expected_value(weights, row, column):
    """One element, by the words of the specification."""
    scheme, size = weights.scheme, weights.scheme.group_size
    place = {
        Granularity.TENSOR: (0,),
        Granularity.CHANNEL: (row,),
        Granularity.GROUP: (row, column // size if size else 0),
        Granularity.BLOCK: (row // size if size else 0, column // size if size else 0),
    }[scheme.granularity]
    if scheme.coding in (Coding.INT4, Coding.MXFP4, Coding.NVFP4):
        byte = int(weights.weight[row, column // 2])
        q = byte & 15 if column % 2 == 0 else byte >> 4
    else:
        q = float(weights.weight[row, column])
    scale = float(weights.scales[place])
    if scheme.coding in (Coding.MXFP4, Coding.NVFP4):
        q = E2M1[q]
    if scheme.coding is Coding.MXFP4:
        return q * 2.0 ** (scale - 127)
    if scheme.coding is Coding.NVFP4:
        return q * scale * float(weights.global_scales[row])
    zero = 8 if scheme.coding is Coding.INT4 else 0
    if scheme.has_zero_points:
        zero = int(weights.zero_points[place])
    return scale * (q - zero)


@pytest.mark.parametrize("scheme", WEIGHT_SCHEMES, ids=str)
def test_every_scheme_means_what_is_written(scheme: WeightScheme) -> None:
    weights = random_weights(scheme, (N, K), torch.Generator().manual_seed(1), 0.05)
    values = dequantize(weights)
    assert values.shape == (N, K)
    assert values.dtype == torch.float32
    assert 0.02 < float(values.std()) < 0.2
    torch.testing.assert_close(dequantize_to(weights, torch.float32), values, rtol=0, atol=0)
    if scheme.coding.block is None:
        for row, column in ((0, 0), (0, 1), (5, 127), (130, 128), (191, 255), (128, 31)):
            np.testing.assert_allclose(
                float(values[row, column]), expected_value(weights, row, column), rtol=1e-6
            )


@pytest.mark.parametrize("scheme", WEIGHT_SCHEMES, ids=str)
def test_a_product_never_needs_the_whole_weight_in_values(
    scheme: WeightScheme, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(1)
    weights = random_weights(scheme, (N, K), generator, K**-0.5)
    bias = torch.randn(N, generator=generator)
    weights = replace(weights, bias=bias)
    x = torch.randn(3, K, generator=generator)
    whole = quantized_product(x, weights, torch.float64)
    monkeypatch.setattr(quantization, "_PIECE_BYTES", 7 * K)
    parts = pieces(weights)
    assert torch.allclose(quantized_product(x, weights, torch.float64), whole, atol=1e-9)
    assert torch.equal(dequantize_to(weights, torch.float32), dequantize(weights))
    if scheme.granularity is not Granularity.BLOCK:
        assert max(each.weight.nbytes for each in parts) <= 7 * K
        assert sum(len(each.weight) for each in parts) == N


@pytest.mark.parametrize("scheme", WEIGHT_SCHEMES, ids=str)
def test_an_unheard_of_scheme_is_refused_by_its_features(scheme: WeightScheme) -> None:
    request = LinearRequest(
        role="x", in_features=K, out_features=N, dtype=Dtype.FLOAT32, scheme=scheme
    )
    assert request.features - {Feature.BIAS}


def test_halves_come_back() -> None:
    codes = torch.arange(64, dtype=torch.uint8).reshape(4, 16) % 16
    packed = pack_halves(codes)
    assert int(packed[0, 1]) == 2 + (3 << 4)
    assert torch.equal(unpack_halves(packed), codes)


def test_activations_are_rounded_per_token() -> None:
    scheme = WeightScheme(
        coding=Coding.INT8, granularity=Granularity.CHANNEL, activations=Activations.PER_TOKEN
    )
    x = torch.tensor([[127.0, 0.5, 1.5, -2.6], [0.0, 0.0, 0.0, 0.0], [-254.0, 1.0, 3.0, 254.0]])
    codes, scale = quantize_activations(x, scheme, None)
    assert scale.flatten().tolist() == [1.0, 1.0, 2.0]
    assert codes.tolist() == [[127, 0, 2, -3], [0, 0, 0, 0], [-127, 0, 2, 127]]


def test_static_activations_are_clamped() -> None:
    scheme = WeightScheme(
        coding=Coding.FP8_E4M3, granularity=Granularity.TENSOR, activations=Activations.STATIC
    )
    codes, _ = quantize_activations(torch.tensor([[1e4, -1e4]]), scheme, torch.tensor([1.0]))
    assert codes.tolist() == [[448.0, -448.0]]
