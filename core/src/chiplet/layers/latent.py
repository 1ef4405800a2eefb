"""Latent attention's projections: absorbed into those before and behind, and rotated in pairs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from chiplet.api import LinearWeights
from chiplet.layers.context import LayerContext, torch_dtype
from chiplet.layers.linear import Linear
from chiplet.layers.weights import Shape, Weight
from chiplet.parallel.sharding import cut_evenly
from chiplet.reference.quantization import dequantize_to


class LatentHeads:
    """What makes keys and values of each head from what is cached, for its queries and results.

    A head's key is K c and its value V c, where c is cached. So q K c = (K^T q) c, and a sum of
    values is V times a sum of what is cached: keys and values of heads are never computed.
    Source: arXiv:2405.04434, section 2.1.2.
    """

    def __init__(
        self, context: LayerContext, *, num_heads: int, plain_dim: int, value_dim: int, rank: int
    ) -> None:
        """Bind the layer; heads are those of the whole model, each with the same sizes."""
        unit = plain_dim + value_dim
        self._context = context
        self._cut = cut_evenly(
            num_heads * unit, context.ranks.size, "attention heads", dim=0, unit=unit
        )
        self._sizes = (plain_dim, value_dim)
        self._of_keys = self._of_values = torch.empty(0)
        self.part_shapes: Mapping[str, Shape] = {"weight": (num_heads * unit, rank)}

    def queries(self, q: Tensor) -> Tensor:
        """Queries of what is cached.

        Shapes: q `[num_tokens, num_heads, plain_dim]`; returns `[num_tokens, num_heads, rank]`.
        """
        return torch.bmm(q.transpose(0, 1), self._of_keys).transpose(0, 1)

    def values(self, attended: Tensor) -> Tensor:
        """Values of sums of what is cached.

        Shapes: attended `[num_tokens, num_heads, rank]`; returns
        `[num_tokens, num_heads, value_dim]`.
        """
        return torch.bmm(attended.transpose(0, 1), self._of_values).transpose(0, 1)

    def load(self, part: str, weight: Weight) -> None:
        """Take the projections: of each head those of keys, then those of values."""
        ranks, place = self._context.ranks, self._context.place
        whole = _plain(weight, self._context)
        keys: list[Tensor] = []
        values: list[Tensor] = []
        for rank in ranks.local_ranks:
            heads = self._cut.take(whole, rank).unflatten(0, (-1, sum(self._sizes)))
            of_keys, of_values = heads.split(self._sizes, dim=1)
            keys.append(place(of_keys.contiguous()))
            values.append(place(of_values.transpose(1, 2).contiguous()))
        self._of_keys, self._of_values = ranks.join(keys), ranks.join(values)

    def adopt(self, other: LatentHeads) -> bool:
        """Take over the projections."""
        self._of_keys, self._of_values = other._of_keys, other._of_values
        return True


class PairedRotation:
    """A linear layer's part, some of whose outputs are rotated in pairs of neighbours.

    Operation rotary turns elements i and i + half of each head. The checkpoint's pairs are 2i and
    2i + 1: its rows are put into another order while they are loaded, those of queries and of keys
    alike, so that their products stay what they are.
    """

    def __init__(
        self, linear: Linear, context: LayerContext, part: str, *, unit: int, rotary_dim: int
    ) -> None:
        """Stand before a layer.

        Args:
            linear: the layer.
            context: what it was made with.
            part: of the layer.
            unit: outputs of a head; the last `rotary_dim` of them are rotated.
            rotary_dim: see `unit`.
        """
        self._linear = linear
        self._context = context
        width = linear.part_shapes[part][0]
        kept, pairs = torch.arange(unit - rotary_dim), torch.arange(unit - rotary_dim, unit)
        order = torch.cat([kept, pairs[::2], pairs[1::2]])
        self._order = (torch.arange(0, width, unit).unsqueeze(1) + order).flatten()
        self.part_shapes = linear.part_shapes

    def load(self, part: str, weight: Weight) -> None:
        """Take the part or its bias, in the other order."""
        plain = _plain(weight, self._context)
        self._linear.load(part, plain[self._order.to(plain.device)])

    def adopt(self, other: PairedRotation) -> bool:
        """Take over the layer's weights."""
        return self._linear.adopt(other._linear)


def _plain(weight: Weight, context: LayerContext) -> Tensor:
    if isinstance(weight, LinearWeights):
        return dequantize_to(weight, torch_dtype(context.dtype))
    return weight
