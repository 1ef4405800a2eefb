from dataclasses import dataclass

from torch import Tensor

from chiplet.api import (
    Activations,
    BuildContext,
    Coding,
    Dtype,
    Feature,
    Granularity,
    LinearImpl,
    LinearRequest,
    LinearWeights,
    No,
    Tier,
    Verdict,
    Yes,
)


@dataclass(frozen=True)
class Transposed:
    """A weight `[in_features, out_features]`; scales `[out_features]` if it is quantized."""

    weight: Tensor
    scales: Tensor | None


class TransposedLinear:
    """y = x W^T, with W kept transposed."""

    def pack(self, weights: LinearWeights) -> Transposed:
        """Called once per layer; core then drops its own tensors."""
        return Transposed(weights.weight.t().contiguous(), weights.scales)

    def run(self, x: Tensor, packed: Transposed) -> Tensor:
        """Shapes: x `[num_tokens, in_features]`; returns `[num_tokens, out_features]`."""
        if packed.scales is None:
            return x @ packed.weight
        # The scale belongs to the output feature, so that it may come after the product.
        return ((x.float() @ packed.weight.float()) * packed.scales).to(x.dtype)


class FossilProvider:
    """Serves float32 and bfloat16 without bias, plain or with int8 weights."""

    name = "fossil"
    accepts = frozenset({Feature.INT8_WEIGHTS})

    def assess(self, request: LinearRequest) -> Verdict:
        """Features are checked already: no bias, no zero points, no int4 arrives here."""
        if request.dtype not in (Dtype.FLOAT32, Dtype.BFLOAT16):
            return No.because("dtype", f"{request.dtype}; float32 and bfloat16 are served")
        scheme = request.scheme
        if scheme is None:
            return Yes(Tier.GENERIC, "transposed weights")
        if scheme.coding is not Coding.INT8 or scheme.granularity is not Granularity.CHANNEL:
            return No.because("scheme", f"{scheme}; int8 per channel is served")
        if scheme.activations is not Activations.KEPT:
            return No.because("activations", f"{scheme.activations}; only kept ones are served")
        return Yes(Tier.GENERIC, "int8, scaled after the product", max_tokens=64)

    def build(self, request: LinearRequest, context: BuildContext) -> LinearImpl:
        """The same for every shape."""
        return TransposedLinear()
