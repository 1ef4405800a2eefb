"""Linear: a product with weights, several checkpoint matrices possibly stacked into one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from chiplet.api import LinearRequest, Packed
from chiplet.layers.context import LayerContext
from chiplet.layers.weights import Shape


class Linear:
    """y = x W^T (+ b), where W stacks its parts along the output.

    Weights are packed by the bound implementation as soon as the last part has come, and the
    unpacked ones are dropped: at most one layer exists in both forms.
    """

    def __init__(
        self,
        context: LayerContext,
        role: str,
        *,
        in_features: int,
        parts: Mapping[str, int],
        has_bias: bool = False,
    ) -> None:
        """Bind the layer.

        Args:
            context: what every layer needs.
            role: name of the layer in pins and explanations, like 'qkv_proj'.
            in_features: width of the input.
            parts: output width of each checkpoint matrix, in stacking order.
            has_bias: each part has a bias, called 'PART.bias'.
        """
        request = LinearRequest(
            role=role,
            in_features=in_features,
            out_features=sum(parts.values()),
            dtype=context.dtype,
            has_bias=has_bias,
        )
        self._impl = context.bindings.linear(request)
        self._run = self._impl.run
        self._packed: Packed = None
        self._raw = _RawWeights(request, parts, context)

    def __call__(self, x: Tensor) -> Tensor:
        """Shapes: x `[num_tokens, in_features]`; returns `[num_tokens, sum of parts]`."""
        return self._run(x, self._packed)

    @property
    def part_shapes(self) -> Mapping[str, Shape]:
        """Every part with the shape of its checkpoint tensor."""
        return self._raw.part_shapes

    def load(self, part: str, tensor: Tensor) -> None:
        """Take one part; pack after the last."""
        self._raw.put(part, tensor)
        if not self._raw.missing:
            self._packed = self._impl.pack(self._raw.weight, self._raw.bias)
            self._raw.drop()


class _RawWeights:
    """Weights of one layer while its parts arrive."""

    def __init__(
        self, request: LinearRequest, parts: Mapping[str, int], context: LayerContext
    ) -> None:
        self._shape = (request.out_features, request.in_features)
        self._context = context
        self._rows: dict[str, slice] = {}
        start = 0
        for part, width in parts.items():
            self._rows[part] = slice(start, start + width)
            start += width
        self.part_shapes: dict[str, Shape] = {
            part: (width, request.in_features) for part, width in parts.items()
        }
        if request.has_bias:
            self.part_shapes |= {f"{part}.bias": (width,) for part, width in parts.items()}
        self.missing = set(self.part_shapes)
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

    def drop(self) -> None:
        """Forget the tensors; the packed form has what is needed."""
        self.weight, self.bias = torch.empty(0), None
