"""Linear layers by cuBLAS, through torch."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from chiplet.api import BuildContext, Feature, LinearRequest, LinearWeights, Tier, Verdict, Yes


class Weights(NamedTuple):
    """Weight `[out_features, in_features]` and bias `[out_features]`."""

    weight: Tensor
    bias: Tensor | None


class CublasLinear:
    """y = x W^T + b."""

    def pack(self, weights: LinearWeights) -> Weights:
        """Keeps both tensors."""
        return Weights(weights.weight, weights.bias)

    def run(self, x: Tensor, packed: Weights) -> Tensor:
        """The product; see `chiplet.api.LinearImpl.run`."""
        return F.linear(x, packed.weight, packed.bias)


class CublasProvider:
    """Serves every type that torch multiplies on a GPU, below kernels made for few rows."""

    name = "cublas"
    accepts = frozenset({Feature.BIAS})

    def assess(self, request: LinearRequest) -> Verdict:
        """Always yes."""
        return Yes(Tier.GENERIC - 10, "weights as they came")

    def build(self, request: LinearRequest, context: BuildContext) -> CublasLinear:
        """The plain product."""
        return CublasLinear()
