"""Linear: a product with weights, several checkpoint matrices possibly stacked into one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from chiplet.api import LinearRequest, LinearWeights, Packed
from chiplet.layers.context import LayerContext
from chiplet.layers.weights import Shape
from chiplet.parallel.sharding import Cut, Shard, cut_evenly, cut_or_repeat, cut_padded


class Linear:
    """y = x W^T (+ b), where W stacks its parts along the output.

    Ranks share it in the way that `shard` names. Weights are packed by the bound implementation as
    soon as the last part has come, quantized before if the context says so, and the unpacked ones
    are dropped: at most one layer exists in both forms.
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
            parts: output width of each checkpoint matrix, in stacking order.
            has_bias: each part has a bias, called 'PART.bias'.
            shard: what each rank holds.
            unit: neighbouring elements of the cut dimension that stay together, as those of a
                head do.
        """
        cuts = _cuts(context, role, shard, unit, in_features, parts)
        is_input_cut = shard is Shard.INPUT
        widths = parts if is_input_cut else {part: cut.width for part, cut in cuts.items()}
        my_in_features = next(iter(cuts.values())).width if is_input_cut else in_features
        quantization = context.quantization
        request = LinearRequest(
            role=role,
            in_features=my_in_features,
            out_features=sum(widths.values()),
            dtype=context.dtype,
            has_bias=has_bias,
            scheme=quantization.scheme(role, my_in_features) if quantization else None,
        )
        self._impl = context.bindings.linear(request)
        self._run = self._impl.run
        self._packed: Packed = None
        self._ranks = context.ranks
        self._shard = shard if context.ranks.is_shared else Shard.NONE
        self._out_features = sum(parts.values())
        self._cuts = cuts
        self._raw = [_RawWeights(request, widths, context) for _ in context.ranks.local_ranks]
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
        y = self._run(x, self._packed)
        if self._shard is Shard.INPUT:
            return self._ranks.all_reduce(y)
        if self._shard is Shard.GATHERED:
            return self._ranks.all_gather(y)[:, : self._out_features]
        return y

    def load(self, part: str, tensor: Tensor) -> None:
        """Take one part; pack after the last."""
        for rank, raw in zip(self._ranks.local_ranks, self._raw, strict=True):
            raw.put(part, self._slice(part, tensor, rank))
        if not self._raw[0].missing:
            self._packed = self._ranks.join([self._impl.pack(raw.weights()) for raw in self._raw])
            for raw in self._raw:
                raw.drop()

    def adopt(self, other: Linear) -> bool:
        """Take over packed weights, if the same implementation packed them."""
        if self._impl is not other._impl:
            return False
        self._packed = other._packed
        return True

    def _slice(self, part: str, tensor: Tensor, rank: int) -> Tensor:
        """A rank's share of a checkpoint tensor."""
        if part.endswith(".bias") and self._shard is Shard.INPUT:
            # Results are summed: one rank alone adds the bias.
            return tensor if rank == 0 else torch.zeros_like(tensor)
        return self._cuts[part.removesuffix(".bias")].take(tensor, rank)


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


class _RawWeights:
    """Weights of one layer of one rank while its parts arrive."""

    def __init__(
        self, request: LinearRequest, parts: Mapping[str, int], context: LayerContext
    ) -> None:
        self._shape = (request.out_features, request.in_features)
        self._scheme = request.scheme
        self._context = context
        self._rows: dict[str, slice] = {}
        start = 0
        for part, width in parts.items():
            self._rows[part] = slice(start, start + width)
            start += width
        self.missing = set(parts)
        if request.has_bias:
            self.missing |= {f"{part}.bias" for part in parts}
        self._has_bias = request.has_bias
        self.weight: Tensor = torch.empty(0)
        self.bias: Tensor | None = None

    def put(self, part: str, tensor: Tensor) -> None:
        """Place a part in its rows."""
        name, is_bias = part.removesuffix(".bias"), part.endswith(".bias")
        if len(self._rows) == 1 and not is_bias:
            # Nothing to stack: take the tensor itself, so that tied weights stay one tensor.
            self.weight = self._context.place(tensor)
        else:
            self._allocate()
            target = self.bias if is_bias else self.weight
            assert target is not None
            target[self._rows[name]] = self._context.place(tensor)
        self.missing.discard(part)

    def _allocate(self) -> None:
        if self.weight.numel() == 0 and len(self._rows) > 1:
            self.weight = self._context.empty(*self._shape)
        if self.bias is None and self._has_bias:
            self.bias = self._context.empty(self._shape[0])

    def weights(self) -> LinearWeights:
        """What has come, for packing: quantized, if the layer is to be."""
        if self._scheme is None:
            return LinearWeights(scheme=None, weight=self.weight, bias=self.bias)
        assert self._context.quantization is not None
        weights = self._context.quantization.quantize(self.weight, self._scheme)
        return replace(weights, bias=self.bias)

    def drop(self) -> None:
        """Forget the tensors; the packed form has what is needed."""
        self.weight, self.bias = torch.empty(0), None
