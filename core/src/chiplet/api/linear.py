"""Linear layers: y = x W^T + b, with weights packed once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from chiplet.api.features import Feature
from chiplet.api.provider import Provider
from chiplet.api.quantization import LinearWeights, WeightScheme
from chiplet.config import Dtype

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearRequest:
    """One linear layer.

    Attributes:
        role: the name in `--use linear/ROLE=NAME`, like 'qkv_proj'.
        in_features: K.
        out_features: N.
        dtype: type of input, output, bias and plain weights.
        has_bias: a bias is added.
        scheme: how the weight is quantized; None for plain weights.
        gives_rows: rows of the weight are read too; the implementation is a `RowSource`.
        is_gated: outputs are a gate and what it is for, `out_features / 2` each, gate first, and
            silu(gate) * up is all that is wanted of them; see `GatedLinear`.
    """

    role: str
    in_features: int
    out_features: int
    dtype: Dtype
    has_bias: bool = False
    scheme: WeightScheme | None = None
    gives_rows: bool = False
    is_gated: bool = False

    @property
    def features(self) -> frozenset[Feature]:
        """What goes beyond the plain case."""
        found = set[Feature]() if self.scheme is None else set(self.scheme.features)
        if self.has_bias:
            found.add(Feature.BIAS)
        if self.gives_rows:
            found.add(Feature.WEIGHT_ROWS)
        return frozenset(found)


Packed = Any
"""Weights in the form that an implementation runs on; opaque to core, but for one thing: tensors in
it are found, where a compiler must have them as arguments. It is therefore a tensor, or made of
tensors by tuples, lists, mappings, dataclasses or objects with attributes."""


class LinearImpl(Protocol):
    """One linear layer's arithmetic."""

    def pack(self, weights: LinearWeights) -> Packed:
        """Weights in the form that `run` takes; called once per layer.

        May keep the tensors themselves; core drops its own references afterwards. Their scheme
        is that of the request, their shapes are those of `chiplet.api.quantization`.
        """
        ...

    def run(self, x: torch.Tensor, packed: Packed) -> torch.Tensor:
        """The product.

        Shapes: x `[num_tokens, in_features]`, last dimension contiguous; returns
        `[num_tokens, out_features]`.
        Mutates: nothing.
        """
        ...


class RowSource(Protocol):
    """A linear implementation that also gives rows of its weight.

    A table of embeddings is kept in its coding by it, once even where the head is tied to it.
    """

    def rows(self, row_ids: torch.Tensor, packed: Packed) -> torch.Tensor:
        """Rows of the weight, in the request's dtype.

        Shapes: row_ids `[n] int32`, each within the weight; returns `[n, in_features]`.
        Mutates: nothing.
        """
        ...


@runtime_checkable
class GatedLinear(Protocol):
    """A linear implementation that may also apply a gate before it writes.

    Optional where a request `is_gated`: of an implementation without it, core calls `run` and then
    operation silu_mul. `pack` may order outputs as this call wants them, as long as `run` gives
    them in theirs: both are called, on the same packed weights.
    """

    def run_silu_mul(self, x: torch.Tensor, packed: Packed) -> torch.Tensor:
        """silu(gate) * up, where gate and up are the halves of the product, bias included.

        Need not round the halves as the product does.

        Shapes: x as in `LinearImpl.run`; returns `[num_tokens, out_features / 2]`.
        Mutates: nothing.
        """
        ...


class LinearProvider(Provider[LinearRequest, LinearImpl], Protocol):
    """Offers linear layers."""
