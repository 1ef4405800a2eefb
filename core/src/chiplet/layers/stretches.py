"""Stretches: how layers run from one attention to the next, and what they are compared with."""

from __future__ import annotations

from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from chiplet.api import GatedLinear, LinearImpl, Packed, Product, Stretch, StretchRequest
from chiplet.reference.ops import add_rms_norm, silu_mul

_COMPARED_ROWS = 4
"""Every layer's stretch is compared at each start."""

_MOST_ERROR = 0.02
"""Share of the norm; rounding to bfloat16 in each operation is a tenth of it."""


@runtime_checkable
class _LinearBySize(Protocol):
    def at(self, num_tokens: int, packed: Packed) -> tuple[LinearImpl, Packed]: ...


def serving(impl: LinearImpl, packed: Packed, num_tokens: int) -> tuple[LinearImpl, Packed]:
    """What serves so many tokens, of an implementation that may be made of several."""
    return impl.at(num_tokens, packed) if isinstance(impl, _LinearBySize) else (impl, packed)


def run_in_parts(
    request: StretchRequest, attended: Tensor, residual: Tensor
) -> tuple[Tensor, Tensor | None]:
    """What a stretch computes, by its layers' products and the reference's operations.

    Shapes: as `chiplet.api.Stretch.run`.
    """
    hidden, total = _normed(request.out, attended, residual, request.norm, request.eps)
    gate_up = request.gate_up
    if isinstance(gate_up.impl, GatedLinear):
        inner = gate_up.impl.run_silu_mul(hidden, gate_up.packed)
    else:
        inner = silu_mul(_run(gate_up, hidden))
    if request.following is None:
        return total + _run(request.down, inner), None
    norm = cast(Tensor, request.following_norm)
    hidden, total = _normed(request.down, inner, total, norm, request.eps)
    return total, _run(request.following, hidden)


def fault_of(stretch: Stretch, request: StretchRequest) -> str:
    """What is wrong with a stretch on random inputs; an empty text if nothing is."""
    shape = (min(stretch.max_rows, _COMPARED_ROWS), request.out.request.in_features)
    generator = torch.Generator().manual_seed(0)
    dtype, device = request.norm.dtype, request.norm.device
    attended = torch.randn(shape, generator=generator).to(device, dtype)
    residual = torch.randn(shape[0], len(request.norm), generator=generator).to(device, dtype)
    found = stretch.run(attended, residual)
    expected = run_in_parts(request, attended, residual)
    for name, mine, theirs in zip(("sum", "product"), found, expected, strict=True):
        if mine is None or theirs is None:
            if mine is not theirs:
                return f"its {name} is {'missing' if mine is None else 'not asked for'}"
            continue
        error = float((mine.double() - theirs.double()).norm() / theirs.double().norm())
        if not error <= _MOST_ERROR:
            return f"its {name} is off by {error:.1e} of the norm"
    return ""


def _normed(
    product: Product, x: Tensor, residual: Tensor, norm: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    return add_rms_norm(_run(product, x), residual, norm, eps)


def _run(product: Product, x: Tensor) -> Tensor:
    return product.impl.run(x, product.packed)
