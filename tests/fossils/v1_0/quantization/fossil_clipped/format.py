import torch
from torch import Tensor

from chiplet.api import (
    Coding,
    ConfigError,
    Granularity,
    LayerFacts,
    LinearWeights,
    ModelError,
    WeightScheme,
)

INT8 = WeightScheme(coding=Coding.INT8, granularity=Granularity.CHANNEL)


class ClippedInt8:
    """Eight bits per output feature."""

    name = "fossil-clipped"

    def scheme(self, layer: LayerFacts) -> WeightScheme | None:
        """None leaves a layer plain: errors in the head change answers most."""
        if layer.in_features < 8:
            raise ConfigError(
                f"Layer {layer.name} has {layer.in_features} input features; 8 or more can be quantized.",
                remedy="Choose --quantization none.",
            )
        return None if layer.role == "lm_head" else INT8

    def quantize(self, weight: Tensor, scheme: WeightScheme) -> LinearWeights:
        """Shapes: weight `[N, K]`; codes `[N, K] int8`; scales `[N] float32`."""
        if not weight.isfinite().all():
            raise ModelError(
                "A weight holds NaN or infinity.", remedy="Get an undamaged checkpoint."
            )
        magnitudes = weight.float().abs()
        kept = max(1, weight.shape[1] * 999 // 1000)
        scales = magnitudes.kthvalue(kept, dim=1).values.clamp(min=1e-12) / 127
        codes = (weight.float() / scales[:, None]).round().clamp(-127, 127)
        return LinearWeights(scheme=scheme, weight=codes.to(torch.int8), scales=scales)
