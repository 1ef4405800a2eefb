"""Linear layers by torch's own matrix product on weights as they came."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from chiplet.api import BuildContext, Feature, LinearRequest, LinearWeights, Tier, Verdict, Yes


class Weights(NamedTuple):
    """Weight `[out_features, in_features]` and bias `[out_features]`."""

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
    """Serves every type that torch multiplies on a CPU."""

    name = "torch"
    accepts = frozenset({Feature.BIAS})

    def assess(self, request: LinearRequest) -> Verdict:
        """Always yes."""
        return Yes(Tier.GENERIC, "weights as they came")

    def build(self, request: LinearRequest, context: BuildContext) -> TorchLinear:
        """The plain product."""
        return TorchLinear()
