"""Linear layers by XLA's own matrix product."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from chiplet.api import BuildContext, Feature, LinearRequest, LinearWeights, Tier, Verdict, Yes


class Weights(NamedTuple):
    """Weight `[out_features, in_features]` and bias `[out_features]`."""

    weight: Tensor
    bias: Tensor | None


class XlaLinear:
    """y = x W^T + b."""

    def pack(self, weights: LinearWeights) -> Weights:
        """Keeps both tensors."""
        return Weights(weights.weight, weights.bias)

    def run(self, x: Tensor, packed: Weights) -> Tensor:
        """The product; see `chiplet.api.LinearImpl.run`."""
        return F.linear(x, packed.weight, packed.bias)


class XlaLinearProvider:
    """Serves plain weights of every type and size."""

    name = "xla"
    accepts = frozenset({Feature.BIAS})

    def assess(self, request: LinearRequest) -> Verdict:
        """Always yes: the compiler tiles the product for the matrix units by itself."""
        return Yes(Tier.VENDOR, "tiled by the compiler")

    def build(self, request: LinearRequest, context: BuildContext) -> XlaLinear:
        """The plain product."""
        return XlaLinear()
