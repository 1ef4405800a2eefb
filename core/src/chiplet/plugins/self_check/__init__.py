"""Self-check: each chosen implementation against the reference, once, at start.

It finds what is plainly wrong on this machine (a miscompiled kernel, a driver that does not fit),
not the last digit: that is the conformance suite's work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from chiplet.api import (
    AttentionRequest,
    LinearRequest,
    MoeRequest,
    Numerics,
    OpRequest,
    Platform,
    Stretch,
    StretchRequest,
)
from chiplet.layers.stretches import fault_of
from chiplet.plugins.comparison import CheckedRequest
from chiplet.plugins.isolation import FAULTS
from chiplet.plugins.self_check.attention import run_attention
from chiplet.plugins.self_check.linear import expected_of_linear, run_linear
from chiplet.plugins.self_check.moe import bounded_moe, run_moe
from chiplet.plugins.self_check.ops import op_arguments

_ALLOWED = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 3e-2}
"""Root mean square of the difference, relative to that of the reference. float32 leaves room for
products with fewer bits, which some devices take by default."""

_ROUNDING = {Numerics.EXACT: 0.0, Numerics.INT8_ACTIVATIONS: 2e-2}
"""What is allowed beyond that where an implementation says that it rounds: of 32 random activations
it loses half a percent, of few large ones among small ones more."""

_ALLOWED_PEAK = 12
"""One element may differ by so many times what the root mean square may."""

_DIFFERENT_DRAWS = 0.1
"""Of drawn tokens so many may differ: a threshold can fall between two roundings."""


class SelfCheck:
    """Compares implementations with the reference on a platform."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    def checkable(self, request: CheckedRequest) -> CheckedRequest:
        """What is compared in a request's place: itself, or a part if it is too large."""
        return bounded_moe(request) if isinstance(request, MoeRequest) else request

    @torch.inference_mode()
    def compare(
        self,
        request: CheckedRequest,
        impl: Any,
        reference: Any,
        numerics: Numerics = Numerics.EXACT,
    ) -> str:
        """What is wrong with the implementation, or an empty text. Never raises."""
        try:
            results = self._results(request, impl)
        except FAULTS as error:
            return f"raised {type(error).__name__}: {error}"
        expected = self._expected(request, reference)
        if len(results) != len(expected):
            return f"gave {len(results)} results, expected {len(expected)}"
        pairs = zip(results, expected, strict=True)
        faults = (_difference(each, want, _ROUNDING[numerics]) for each, want in pairs)
        return next((fault for fault in faults if fault), "")

    @torch.inference_mode()
    def compare_stretch(self, request: StretchRequest, stretch: Stretch) -> str:
        """What is wrong with a stretch beside its layers, or an empty text."""
        return fault_of(stretch, request)

    def _results(self, request: CheckedRequest, impl: Any) -> Sequence[Tensor]:
        """What it computes, in host memory."""
        device = self._platform.torch_device
        match request:
            case AttentionRequest():
                results = run_attention(request, impl, device)
            case LinearRequest():
                results = run_linear(request, impl, device)
            case MoeRequest():
                results = run_moe(request, impl, device)
            case OpRequest():
                result = impl(*op_arguments(request, device))
                results = result if isinstance(result, tuple) else (result,)
        return [each.to("cpu") for each in results]

    def _expected(self, request: CheckedRequest, reference: Any) -> Sequence[Tensor]:
        """What it must compute, in host memory."""
        if isinstance(request, LinearRequest):
            results = expected_of_linear(request, reference, self._platform.torch_device)
            return [each.to("cpu") for each in results]
        return self._results(request, reference)


def _difference(result: Tensor, expected: Tensor, rounding: float) -> str:
    """What differs, or an empty text."""
    if result.shape != expected.shape or result.dtype != expected.dtype:
        return (
            f"gave {tuple(result.shape)} {result.dtype}, "
            f"expected {tuple(expected.shape)} {expected.dtype}"
        )
    if not expected.is_floating_point():
        differing = float((result != expected).double().mean())
        return f"{differing:.0%} of the values differ" if differing > _DIFFERENT_DRAWS else ""
    is_infinite = expected.isinf()  # as forbidden tokens are
    if bool((result[is_infinite] != expected[is_infinite]).any()):
        return "is finite where the reference is not"
    result, expected = (each.masked_fill(is_infinite, 0) for each in (result, expected))
    if not result.isfinite().all():
        return "gave a value that is no finite number"
    allowed = _ALLOWED[expected.dtype] + rounding
    error, exact = (result.double() - expected.double()).abs(), expected.double()
    scale = max(float(exact.square().mean()) ** 0.5, 1e-6)
    mean, peak = float(error.square().mean()) ** 0.5 / scale, float(error.max()) / scale
    if mean > allowed or peak > _ALLOWED_PEAK * allowed:
        return f"differs from the reference by {mean:.2g} ({peak:.2g} at most), allowed {allowed:g}"
    return ""
