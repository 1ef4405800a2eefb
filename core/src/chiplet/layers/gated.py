"""Gates: how silu(gate) * up of a product is called, whoever multiplies."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

from chiplet.api import GatedLinear, LinearImpl, OpImpl, Packed

if TYPE_CHECKING:
    from torch import Tensor

GatedRun: TypeAlias = "Callable[[Tensor, Packed], Tensor]"
"""Shapes: as `chiplet.api.GatedLinear.run_silu_mul`."""


@runtime_checkable
class GatedInParts(Protocol):
    """An implementation made of others, of which some may be `GatedLinear`."""

    def gated_run(self, silu_mul: OpImpl) -> GatedRun | None:
        """As the function of this name."""
        ...


def gated_run(impl: LinearImpl, silu_mul: OpImpl) -> GatedRun | None:
    """The product with its gate in one call; None if no part of the implementation has that.

    Args:
        impl: built for a request that `is_gated`.
        silu_mul: for parts that have no such call.
    """
    if isinstance(impl, GatedLinear):
        return impl.run_silu_mul
    return impl.gated_run(silu_mul) if isinstance(impl, GatedInParts) else None


def run_then_gate(impl: LinearImpl, silu_mul: OpImpl) -> GatedRun:
    """The product, and then the operation."""
    run = impl.run
    return lambda x, packed: silu_mul(run(x, packed))
