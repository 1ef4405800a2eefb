"""Reference linear layer: one matrix product."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from chiplet.api import BuildContext, Feature, LinearRequest, Tier, Verdict, Yes


class PlainWeights(NamedTuple):
    """Weights as they came: weight `[out_features, in_features]`, bias `[out_features]`."""

    weight: Tensor
    bias: Tensor | None


class PlainLinear:
    """y = x W^T + b on weights as they came."""

    def pack(self, weight: Tensor, bias: Tensor | None) -> PlainWeights:
        """Keeps both tensors."""
        return PlainWeights(weight, bias)

    def run(self, x: Tensor, packed: PlainWeights) -> Tensor:
        """The product; see `chiplet.api.LinearImpl.run`."""
        return F.linear(x, packed.weight, packed.bias)


class ReferenceLinear:
    """Serves every linear layer on any device that torch serves."""

    name = "reference"
    accepts = frozenset(Feature)

    def assess(self, request: LinearRequest) -> Verdict:
        """Always yes, with the lowest score."""
        return Yes(Tier.REFERENCE)

    def build(self, request: LinearRequest, context: BuildContext) -> PlainLinear:
        """The plain product."""
        return PlainLinear()
