"""RawExperts: the weights of a layer's experts while their parts arrive."""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import Tensor

from chiplet.api import (
    Activations,
    ExpertWeights,
    Granularity,
    LayerFacts,
    LinearWeights,
    MoeRequest,
    WeightScheme,
)
from chiplet.errors import ConfigError
from chiplet.layers.context import LayerContext


def expert_scheme(context: LayerContext, hidden_size: int, width: int) -> WeightScheme | None:
    """How a rank's share of the experts is quantized; None leaves them plain.

    Raises:
        ConfigError: the two products would be quantized in different ways, or with scales that
            cover more than one output.
    """
    if context.quantization is None:
        return None
    shapes = ((hidden_size, 2 * width), (width, hidden_size))
    facts = (
        LayerFacts(name=context.name_of("experts"), role="experts", in_features=k, out_features=n)
        for k, n in shapes
    )
    first, second = (context.quantization.scheme(each) for each in facts)
    if first == second and (first is None or _is_by_output(first)):
        return first
    raise ConfigError(
        f"quantization is '{context.quantization.name}', which gives the products of experts, of "
        f"{hidden_size} and {width} inputs, the schemes '{first}' and '{second}'; both must have "
        f"the same, with scales of single outputs.",
        remedy="Choose --quantization int8 or none.",
    )


def _is_by_output(scheme: WeightScheme) -> bool:
    """Whether experts that stand one above the other are canonical tensors again."""
    is_by_output = scheme.granularity in (Granularity.CHANNEL, Granularity.GROUP)
    return is_by_output and scheme.activations is not Activations.STATIC


class RawExperts:
    """Both matrices of all experts, for one rank; quantized part by part, if they are to be."""

    def __init__(self, request: MoeRequest, context: LayerContext) -> None:
        self._context = context
        self._request = request
        num, width, hidden = request.num_experts, request.intermediate_size, request.hidden_size
        self._gate_up = _Stack(num * 2 * width, hidden, request.scheme, context)
        self._down = _Stack(num * hidden, width, request.scheme, context)

    def put(self, index: int, name: str, weight: Tensor) -> None:
        """Place this rank's share of 'gate', 'up' or 'down' of one expert."""
        width, hidden = self._request.intermediate_size, self._request.hidden_size
        if name == "down":
            self._down.put(index * hidden, weight)
        else:
            self._gate_up.put((2 * index + (name == "up")) * width, weight)

    def weights(self) -> ExpertWeights:
        """What has come, for packing."""
        num = self._request.num_experts
        gate_up, down = self._gate_up.weights, self._down.weights
        if self._request.scheme is None:
            return ExpertWeights(
                gate_up=gate_up.weight.unflatten(0, (num, -1)),
                down=down.weight.unflatten(0, (num, -1)),
            )
        return ExpertWeights.of_coded(gate_up, down, num)


class _Stack:
    """Matrices one above the other."""

    def __init__(
        self, num_rows: int, num_columns: int, scheme: WeightScheme | None, context: LayerContext
    ) -> None:
        self._num_rows = num_rows
        self._scheme = scheme
        self._context = context
        plain = context.empty(*((0,) if scheme else (num_rows, num_columns)))
        self.weights = LinearWeights(scheme=None, weight=plain)

    def put(self, first: int, weight: Tensor) -> None:
        """Place one from a row on."""
        if self._scheme is None:
            self.weights.weight[first : first + len(weight)] = weight
            return
        assert self._context.quantization is not None
        part = self._context.quantization.quantize(self._context.place(weight), self._scheme)
        if self.weights.scheme is None:
            # Shapes of scales and the like are the format's to know: the first part tells them.
            self.weights = part.mapped(
                lambda each: torch.empty(
                    (self._num_rows, *each.shape[1:]), dtype=each.dtype, device=each.device
                )
            )
        for each in fields(LinearWeights)[1:]:
            target, source = getattr(self.weights, each.name), getattr(part, each.name)
            if source is not None:
                target[first : first + len(source)] = source
