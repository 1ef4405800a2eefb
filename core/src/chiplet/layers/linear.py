"""Linear: a product with weights, several checkpoint matrices possibly stacked into one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import groupby
from typing import cast

import torch
from torch import Tensor

from chiplet.api import (
    Activations,
    Granularity,
    LayerFacts,
    LinearRequest,
    LinearWeights,
    OpImpl,
    Packed,
    Product,
    RowSource,
    WeightScheme,
)
from chiplet.errors import ConfigError
from chiplet.layers.context import LayerContext, torch_dtype
from chiplet.layers.gated import gated_run
from chiplet.layers.raw_weights import RawWeights
from chiplet.layers.stretches import serving
from chiplet.layers.weights import Shape, Weight, WeightTarget
from chiplet.parallel.group import RankGroup
from chiplet.parallel.sharding import Cut, Shard, cut_evenly, cut_or_repeat, cut_padded
from chiplet.reference.quantization import dequantize_to


class Linear:
    """y = x W^T (+ b), where W stacks its parts along the output.

    Ranks share it in the way that `shard` names. Parts that a checkpoint holds in a coding which
    somebody serves stay in it. Neighbours in one coding are one product; mostly all parts are.
    Weights are packed by the bound implementation as soon as the last part has come, quantized
    before if the context says so, and the unpacked ones are dropped: at most one layer exists in
    both forms.
    """

    def __init__(
        self,
        context: LayerContext,
        role: str,
        *,
        in_features: int,
        parts: Mapping[str, int],
        has_bias: bool = False,
        shard: Shard = Shard.NONE,
        unit: int = 1,
    ) -> None:
        """Bind the layer.

        Args:
            context: what every layer needs.
            role: name of the layer in pins and explanations, like 'qkv_proj'.
            in_features: width of the input.
            parts: output width of each checkpoint matrix, in stacking order, by its name within
                the context.
            has_bias: each part has a bias, called 'PART.bias'.
            shard: what each rank holds.
            unit: neighbouring elements of the cut dimension that stay together, as those of a
                head do.
        """
        cuts = _cuts(context, role, shard, unit, in_features, parts)
        is_input_cut = shard is Shard.INPUT
        widths = parts if is_input_cut else {part: cut.width for part, cut in cuts.items()}
        my_in_features = next(iter(cuts.values())).width if is_input_cut else in_features
        request = LinearRequest(
            role=role,
            in_features=my_in_features,
            out_features=sum(widths.values()),
            dtype=context.dtype,
            has_bias=has_bias,
            is_gated=context.is_gated,
        )
        self._products = list(_products(context, request, widths))
        self._part_products = {part: each for each in self._products for part in each.parts}
        self._names = {part: context.name_of(part) for part in parts}
        self._ranks = context.ranks
        self._dtype = torch_dtype(context.dtype)
        self._shard = shard if context.ranks.is_shared else Shard.NONE
        self._out_features = sum(parts.values())
        self._cuts = cuts
        self.part_shapes: dict[str, Shape] = {
            part: (width, in_features) for part, width in parts.items()
        }
        if has_bias:
            self.part_shapes |= {f"{part}.bias": (width,) for part, width in parts.items()}

    def __call__(self, x: Tensor) -> Tensor:
        """The product, or this rank's slice of it with `Shard.OUTPUT`.

        Shapes: x `[num_tokens, in_features]`, or a slice with `Shard.INPUT`; returns
        `[num_tokens, sum of parts]`.
        """
        first, *rest = self._products
        y = first.run(x, first.packed)
        if rest:
            y = torch.cat([y, *(each.run(x, each.packed) for each in rest)], dim=1)
        if self._shard is Shard.INPUT:
            return self._ranks.all_reduce(y)
        if self._shard is Shard.GATHERED:
            return self._ranks.all_gather(y)[:, : self._out_features]
        return y

    def gated(self, silu_mul: OpImpl) -> Callable[[Tensor], Tensor]:
        """The layer with its gate applied: in one call where the implementation has that.

        Of a layer whose context says that it `is_gated`. The callable takes x
        `[num_tokens, in_features]` and returns `[num_tokens, half the sum of parts]`, or this
        rank's slice of that with `Shard.OUTPUT`.

        Args:
            silu_mul: operation silu_mul, for implementations without the call.
        """
        product = self._products[0]
        run = gated_run(product.impl, silu_mul) if product.is_gated else None
        if run is None:
            return lambda x: silu_mul(self(x))
        return lambda x: run(x, product.packed)

    def product(self, num_tokens: int) -> Product | None:
        """What multiplies so many tokens; None if several do, or ranks share the layer."""
        if len(self._products) > 1 or self._ranks.is_shared:
            return None
        only = self._products[0]
        impl, packed = serving(only.impl, only.packed, num_tokens)
        return Product(only.request, impl, packed)

    @property
    def gives_rows(self) -> bool:
        """Whether the weight is one that stays in its coding and gives rows."""
        return self._products[0].gives_rows

    def rows(self, row_ids: Tensor) -> Tensor:
        """Rows of the weight.

        Shapes: row_ids `[n] int32`; returns `[n, in_features]`.
        """
        product = self._products[0]
        return product.rows(row_ids, product.packed)

    def weights(self) -> Iterator[tuple[str, WeightTarget]]:
        """Names of the checkpoint's tensors, and where they go."""
        for part in self.part_shapes:
            name = part.removesuffix(".bias")
            kind = "bias" if part.endswith(".bias") else "weight"
            yield f"{self._names[name]}.{kind}", WeightTarget(self, part)

    def load(self, part: str, weight: Weight) -> None:
        """Take one part; pack after the last."""
        product = self._part_products[part.removesuffix(".bias")]
        for rank, raw in zip(self._ranks.local_ranks, product.raw, strict=True):
            raw.put(part, self._slice(part, weight, rank))
        product.pack_if_complete(self._ranks)

    def adopt(self, other: Linear) -> bool:
        """Take over packed weights, if the same implementations packed them."""
        mine, theirs = (
            [(each.impl, each.parts) for each in one._products] for one in (self, other)
        )
        if mine != theirs:
            return False
        for product, before in zip(self._products, other._products, strict=True):
            product.packed = before.packed
        return True

    def _slice(self, part: str, weight: Weight, rank: int) -> Weight:
        """A rank's share of a checkpoint tensor."""
        if isinstance(weight, LinearWeights):
            if not (self._ranks.is_shared and _has_squares(weight.scheme)):
                return _share(weight, self._cuts[part], rank)
            # A cut need not fall between squares of weights.
            weight = dequantize_to(weight, self._dtype)
        if part.endswith(".bias") and self._shard is Shard.INPUT:
            # Results are summed: one rank alone adds the bias.
            return weight if rank == 0 else torch.zeros_like(weight)
        return self._cuts[part.removesuffix(".bias")].take(weight, rank)


class _Product:
    """One implementation, and the parts that it multiplies with."""

    def __init__(
        self, context: LayerContext, request: LinearRequest, parts: Mapping[str, int]
    ) -> None:
        self.request = request
        self.impl = context.bindings.linear(request)
        self.run = self.impl.run
        self.is_gated = request.is_gated
        self.gives_rows = request.gives_rows
        if self.gives_rows:
            self.rows = cast(RowSource, self.impl).rows
        self.parts = parts
        self.packed: Packed = None
        self.raw = [RawWeights(request, parts, context) for _ in context.ranks.local_ranks]

    def pack_if_complete(self, ranks: RankGroup) -> None:
        """Pack the weights of all local ranks once every part is there."""
        if not self.raw[0].missing:
            self.packed = ranks.join([self.impl.pack(raw.weights()) for raw in self.raw])
            for raw in self.raw:
                raw.drop()


def _products(
    context: LayerContext, request: LinearRequest, widths: Mapping[str, int]
) -> Iterator[_Product]:
    """One for each run of parts with the same scheme."""
    schemes = {
        part: _scheme(context, replace(request, out_features=width, is_gated=False), part)
        for part, width in widths.items()
    }
    keys = {part: (each, part if _stands_alone(each) else "") for part, each in schemes.items()}
    for (scheme, _), group in groupby(widths, key=keys.__getitem__):
        parts = {part: widths[part] for part in group}
        asked = replace(
            request,
            out_features=sum(parts.values()),
            scheme=scheme,
            gives_rows=context.gives_rows and scheme is not None,
            is_gated=request.is_gated and len(parts) == len(widths),
        )
        yield _Product(context, asked, parts)


def _stands_alone(scheme: WeightScheme | None) -> bool:
    """Whether a part in the scheme cannot be stacked on others: one number is of the whole part."""
    if scheme is None:
        return False
    of_all = scheme.granularity in (Granularity.TENSOR, Granularity.BLOCK)
    return of_all or scheme.activations is Activations.STATIC


def _scheme(context: LayerContext, request: LinearRequest, part: str) -> WeightScheme | None:
    """How a part is kept: as the context quantizes, as the checkpoint has it, or plain."""
    if context.quantization is not None:
        layer = LayerFacts(
            name=context.name_of(part),
            role=request.role,
            in_features=request.in_features,
            out_features=request.out_features,
        )
        chosen = context.quantization.scheme(layer)
        if chosen is not None:
            _check_rows(context, layer)
            return chosen
    stored = context.stored.get(f"{context.name_of(part)}.weight")
    if stored is None or not _fits(stored, request.in_features):
        return None
    if context.ranks.is_shared and (context.gives_rows or _has_squares(stored)):
        return None  # rows are looked up in the whole table; squares cannot be cut anywhere
    asked = replace(request, scheme=stored, gives_rows=context.gives_rows)
    return stored if context.bindings.serves(asked) else None


def _check_rows(context: LayerContext, layer: LayerFacts) -> None:
    """Refuse to quantize a table that is looked up in, where each rank has a part of it."""
    if context.gives_rows and context.ranks.is_shared:
        raise ConfigError(
            f"{layer.name} is the embedding too, whose rows ranks find in the whole table: it "
            f"cannot be quantized for {context.ranks.size} ranks.",
            remedy="Leave out --head-quantization, or serve with one rank.",
        )


def _fits(scheme: WeightScheme, in_features: int) -> bool:
    """Whether a rank's share of the inputs holds whole blocks or groups."""
    block = scheme.coding.block
    return in_features % (block.elements if block else max(scheme.group_size, 1)) == 0


def _has_squares(scheme: WeightScheme | None) -> bool:
    return scheme is not None and scheme.granularity is Granularity.BLOCK


def _cuts(
    context: LayerContext,
    role: str,
    shard: Shard,
    unit: int,
    in_features: int,
    parts: Mapping[str, int],
) -> dict[str, Cut]:
    """How each part is cut."""
    size = context.ranks.size
    match shard:
        case Shard.NONE:
            return {part: Cut(0, width, width, (0,) * size) for part, width in parts.items()}
        case Shard.OUTPUT:
            return {
                part: cut_or_repeat(width, size, f"{role} outputs", dim=0, unit=unit)
                for part, width in parts.items()
            }
        case Shard.INPUT:
            cut = cut_evenly(in_features, size, f"{role} inputs", dim=1, unit=unit)
            return dict.fromkeys(parts, cut)
        case Shard.GATHERED:
            # Padding lies at the end of a rank's outputs, so that parts cannot be stacked.
            assert len(parts) == 1, "a gathered layer has one part"
            return {part: cut_padded(width, size, dim=0) for part, width in parts.items()}


def _share(weights: LinearWeights, cut: Cut, rank: int) -> LinearWeights:
    """A rank's share of coded weights: of each tensor that has the dimension of the cut."""

    def take(tensor: Tensor) -> Tensor:
        is_cut = tensor.ndim > cut.dim and tensor.shape[cut.dim] > 1
        return cut.take(tensor, rank) if is_cut else tensor

    return weights.mapped(take)
