"""Linear layers of many rows: torch's product, by the library that its build for the device has."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from chiplet.api import (
    BuildContext,
    Feature,
    LinearRequest,
    LinearWeights,
    Tier,
    Verdict,
    Yes,
)


class Weights(NamedTuple):
    """Weights as they came: weight `[out_features, in_features]`, bias `[out_features]`."""

    weight: Tensor
    bias: Tensor | None


class TorchLinear:
    """y = x W^T + b."""

    def pack(self, weights: LinearWeights) -> Weights:
        """Keeps both tensors."""
        return Weights(weights.weight, weights.bias)

    def run(self, x: Tensor, packed: Weights) -> Tensor:
        """The product; see `chiplet.api.LinearImpl.run`."""
        return F.linear(x, packed.weight, packed.bias)


class TorchLinearProvider:
    """Serves plain weights where kernels for few rows end and no vendor's plugin does better."""

    name = "torch"
    accepts = frozenset({Feature.BIAS})

    def assess(self, request: LinearRequest) -> Verdict:
        """Always yes: weights in a coding are a feature that it does not list."""
        return Yes(Tier.GENERIC - 20, "torch's product")

    def build(self, request: LinearRequest, context: BuildContext) -> TorchLinear:
        """The plain product."""
        return TorchLinear()
