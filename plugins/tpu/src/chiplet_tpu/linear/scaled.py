"""Linear layers with weights of 8 bits, by this plugin's own kernel."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from torch import Tensor

from chiplet.api import (
    Activations,
    BuildContext,
    Coding,
    DeviceProbe,
    Feature,
    Granularity,
    LinearRequest,
    LinearWeights,
    No,
    Tier,
    Verdict,
    WeightScheme,
    Yes,
)
from chiplet_tpu.chips import is_emulated
from chiplet_tpu.compilation.arrays import array_of, wrap
from chiplet_tpu.kernels.scaled_matmul import scaled_matmul

_LARGEST = {Coding.INT8: 127.0, Coding.FP8_E4M3: 448.0}


class ScaledWeights(NamedTuple):
    """Weight `[N, K]` int8 or float8_e4m3fn, scales `[N] float32`, bias `[N]`."""

    weight: Tensor
    scales: Tensor
    bias: Tensor | None


class ScaledLinear:
    """y = (x * a) (w * s)^T + b, with x rounded to 8 bits if the scheme says so."""

    def __init__(self, scheme: WeightScheme, *, interpret: bool) -> None:
        self._scheme = scheme
        self._interpret = interpret

    def pack(self, weights: LinearWeights) -> ScaledWeights:
        """Keeps the weight; one scale for all outputs becomes one for each."""
        assert weights.scales is not None
        scales = weights.scales.float().expand(weights.weight.shape[0]).contiguous()
        return ScaledWeights(weights.weight, scales, weights.bias)

    def run(self, x: Tensor, packed: ScaledWeights) -> Tensor:
        """The product; see `chiplet.api.LinearImpl.run`."""
        values = array_of(x)
        codes, scale = self._rounded(values)
        y = scaled_matmul(
            codes,
            scale,
            array_of(packed.weight),
            array_of(packed.scales),
            out_dtype=values.dtype,
            interpret=self._interpret,
        )
        return wrap(y) if packed.bias is None else wrap(y) + packed.bias

    def _rounded(self, x: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """Activations as the scheme wants them; see `chiplet.api.quantization`."""
        if self._scheme.activations is Activations.KEPT:
            return x, None
        wide, largest = x.astype(jnp.float32), _LARGEST[self._scheme.coding]
        peak = jnp.abs(wide).max(axis=-1)
        scale = jnp.where(peak == 0, 1.0, peak / largest)
        codes = wide / scale[:, None]
        if self._scheme.coding is Coding.INT8:
            return jnp.clip(jnp.round(codes), -largest, largest).astype(jnp.int8), scale
        return jnp.clip(codes, -largest, largest).astype(jnp.float8_e4m3fn), scale


class ScaledLinearProvider:
    """Serves int8 and fp8 weights with a scale per output or for all."""

    name = "pallas"
    accepts = frozenset(
        {
            Feature.BIAS,
            Feature.INT8_WEIGHTS,
            Feature.FP8_WEIGHTS,
            Feature.DYNAMIC_ACTIVATIONS,
        }
    )

    def __init__(self, device: DeviceProbe) -> None:
        self._is_emulated = is_emulated(device)

    def assess(self, request: LinearRequest) -> Verdict:
        """Yes where one scale covers whole outputs."""
        scheme = request.scheme
        if scheme is None:
            return No.because("plain", "serves weights of 8 bits; these are plain")
        if scheme.granularity not in (Granularity.CHANNEL, Granularity.TENSOR):
            text = f"scales per {scheme.granularity}; allowed: channel, tensor"
            return No.because("granularity", text)
        if scheme.activations not in (Activations.KEPT, Activations.PER_TOKEN):
            text = f"activations {scheme.activations}; allowed: kept, per_token"
            return No.because("activations", text)
        if self._is_emulated:
            return Yes(Tier.REFERENCE - 1, "interpreted: to be pinned for tests only")
        return Yes(Tier.VENDOR, "weights stay in 8 bits until they are in the core's memory")

    def build(self, request: LinearRequest, context: BuildContext) -> ScaledLinear:
        """The kernel."""
        assert request.scheme is not None
        return ScaledLinear(request.scheme, interpret=self._is_emulated)
