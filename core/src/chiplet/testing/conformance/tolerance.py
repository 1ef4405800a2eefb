"""How far a result may be from the exact one."""

from __future__ import annotations

import torch
from torch import Tensor

from chiplet.api import Dtype

TORCH_DTYPES = {
    Dtype.FLOAT32: torch.float32,
    Dtype.FLOAT16: torch.float16,
    Dtype.BFLOAT16: torch.bfloat16,
}

EPSILON = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1.6e-2, torch.float64: 1e-12}
"""What is added to twice the reference's own error, by the result's type."""


def assert_close(
    result: Tensor, plain: Tensor, exact: Tensor, what: str, *, slack: float = 0.0
) -> None:
    """Check that a result is at most twice as far from the exact one as the reference is.

    Largest and mean square error are both compared, relative to the largest exact value or 1.

    Args:
        result: what the implementation gives.
        plain: what the reference gives on the same inputs in the same type.
        exact: what the reference gives in float64.
        what: said when the check fails.
        slack: added to what is allowed, where inputs are rounded coarsely.

    Raises:
        AssertionError: it is further, or its shape or type is another.
    """
    assert result.shape == plain.shape, f"{what}: shape {result.shape}, expected {plain.shape}"
    assert result.dtype == plain.dtype, f"{what}: type {result.dtype}, expected {plain.dtype}"
    assert not result.isnan().any(), f"{what}: NaN in the result"
    if not result.numel():
        return
    epsilon = EPSILON[result.dtype] + slack
    scale = max(1.0, float(exact.abs().max()))
    errors = (result.double() - exact).abs() / scale
    plain_errors = (plain.double() - exact).abs() / scale
    largest, allowed = float(errors.max()), 2 * float(plain_errors.max()) + epsilon
    assert largest <= allowed, f"{what}: error {largest:.3g}, allowed {allowed:.3g}"
    power = max(float(exact.square().mean()), epsilon**2) / scale**2
    mean = float(errors.square().mean()) / power
    allowed = 4 * float(plain_errors.square().mean()) / power + epsilon**2
    assert mean <= allowed, f"{what}: mean square error {mean:.3g}, allowed {allowed:.3g}"
