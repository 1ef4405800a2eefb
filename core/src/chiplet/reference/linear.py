"""Reference linear layer: one matrix product, of dequantized weights where they are quantized."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from chiplet.api import (
    Activations,
    BuildContext,
    Feature,
    LinearRequest,
    LinearWeights,
    Tier,
    Verdict,
    Yes,
)
from chiplet.reference.quantization import dequantize, picked, pieces, quantize_activations


class PlainLinear:
    """y = x W^T + b on weights as they came."""

    def pack(self, weights: LinearWeights) -> LinearWeights:
        """Keeps the tensors."""
        return weights

    def run(self, x: Tensor, packed: LinearWeights) -> Tensor:
        """The product; see `chiplet.api.LinearImpl.run`."""
        return F.linear(x, packed.weight, packed.bias)


class DequantizingLinear:
    """y = x W^T + b on quantized weights, dequantized anew in each call."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def pack(self, weights: LinearWeights) -> LinearWeights:
        """Keeps the tensors."""
        return weights

    def run(self, x: Tensor, packed: LinearWeights) -> Tensor:
        """The product; see `chiplet.api.LinearImpl.run`."""
        return quantized_product(x, packed).to(x.dtype)

    def rows(self, row_ids: Tensor, packed: LinearWeights) -> Tensor:
        """Rows of the weight; see `chiplet.api.RowSource.rows`."""
        return dequantize(picked(packed, row_ids)).to(self._dtype)


def quantized_product(
    x: Tensor, weights: LinearWeights, dtype: torch.dtype = torch.float32
) -> Tensor:
    """What a quantized layer gives, computed in `dtype`.

    Shapes: x `[num_tokens, K]`; returns `[num_tokens, N]`.
    """
    scheme = weights.scheme
    assert scheme is not None
    values = x.to(dtype)
    if scheme.activations is not Activations.KEPT:
        codes, scale = quantize_activations(x, scheme, weights.input_scale)
        values = codes.to(dtype) * scale.to(dtype)
    parts = pieces(replace(weights, bias=None))
    products = [F.linear(values, dequantize(part).to(dtype)) for part in parts]
    product = torch.cat(products, dim=1) if len(products) > 1 else products[0]
    return product if weights.bias is None else product + weights.bias.to(dtype)


class ReferenceLinear:
    """Serves every linear layer on any device that torch serves."""

    name = "reference"
    accepts = frozenset(Feature)

    def assess(self, request: LinearRequest) -> Verdict:
        """Always yes, with the lowest score."""
        return Yes(Tier.REFERENCE, "" if request.scheme is None else "dequantizes in each step")

    def build(
        self, request: LinearRequest, context: BuildContext
    ) -> PlainLinear | DequantizingLinear:
        """The plain product, or that of dequantized weights."""
        return (
            PlainLinear()
            if request.scheme is None
            else DequantizingLinear(getattr(torch, request.dtype))
        )
