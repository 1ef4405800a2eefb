"""RawWeights: the weights of one linear layer while its parts arrive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor

from chiplet.api import LinearRequest, LinearWeights
from chiplet.layers.context import LayerContext, torch_dtype
from chiplet.layers.weights import Weight
from chiplet.reference.quantization import dequantize_to


class RawWeights:
    """Parts stacked along the output, for one rank; plain ones, or ones in the request's scheme."""

    def __init__(
        self, request: LinearRequest, parts: Mapping[str, int], context: LayerContext
    ) -> None:
        """Wait for parts.

        Args:
            request: of the layer.
            parts: output width of each, in stacking order.
            context: what every layer needs.
        """
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
        self._weight: Tensor = torch.empty(0)
        self._bias: Tensor | None = None
        self._coded: dict[str, LinearWeights] = {}

    def put(self, part: str, weight: Weight) -> None:
        """Place a part in its rows; one in another scheme than the layer's is dequantized."""
        name, is_bias = part.removesuffix(".bias"), part.endswith(".bias")
        if isinstance(weight, LinearWeights) and weight.scheme == self._scheme:
            self._coded[name] = weight.mapped(lambda each: each.to(self._context.device))
        else:
            self._put_plain(name, self._plain(weight), is_bias=is_bias)
        self.missing.discard(part)

    def _plain(self, weight: Weight) -> Tensor:
        if isinstance(weight, LinearWeights):
            weight = dequantize_to(weight, torch_dtype(self._context.dtype))
        return self._context.place(weight)

    def _put_plain(self, name: str, tensor: Tensor, *, is_bias: bool) -> None:
        if len(self._rows) == 1 and not is_bias:
            # Nothing to stack: take the tensor itself, so that tied weights stay one tensor.
            self._weight = tensor
            return
        if not is_bias and self._weight.numel() == 0:
            self._weight = self._context.empty(*self._shape)
        if is_bias and self._bias is None:
            self._bias = self._context.empty(self._shape[0])
        target = self._bias if is_bias else self._weight
        assert target is not None
        target[self._rows[name]] = tensor

    def weights(self) -> LinearWeights:
        """What has come, for packing: quantized, if the layer is to be."""
        if self._coded:
            return replace(_stacked([self._coded[part] for part in self._rows]), bias=self._bias)
        if self._scheme is None:
            return LinearWeights(scheme=None, weight=self._weight, bias=self._bias)
        assert self._context.quantization is not None
        weights = self._context.quantization.quantize(self._weight, self._scheme)
        return replace(weights, bias=self._bias)

    def drop(self) -> None:
        """Forget the tensors; the packed form has what is needed."""
        self._weight, self._bias = torch.empty(0), None
        self._coded.clear()


def _stacked(parts: Sequence[LinearWeights]) -> LinearWeights:
    """Weights of one scheme, one above the other."""
    if len(parts) == 1:
        return parts[0]
    names = (each.name for each in fields(LinearWeights)[1:])
    columns = {name: [getattr(part, name) for part in parts] for name in names}
    tensors = {name: torch.cat(column) for name, column in columns.items() if column[0] is not None}
    return LinearWeights(scheme=parts[0].scheme, **tensors)
