"""The head of a model in fewer bits, on request: formats leave it plain by themselves."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from chiplet.api import LayerFacts, LinearWeights, QuantizationFormat, WeightScheme
from chiplet.errors import ConfigError

HEAD_ROLE = "lm_head"

ASKED_ROLE = "quantized_head"
"""The role of the head in the question to its format, which would keep 'lm_head' plain."""


class WithHead:
    """One format for the head, another one, or none, for all other layers."""

    def __init__(self, body: QuantizationFormat | None, head: QuantizationFormat) -> None:
        """Combine them; nothing is asked yet."""
        self.name = head.name if body is None else f"{body.name}, head {head.name}"
        self._body, self._head = body, head
        self._made_by: dict[WeightScheme, QuantizationFormat] = {}

    def scheme(self, layer: LayerFacts) -> WeightScheme | None:
        """What the layer's format answers.

        Mutates: remembers who gave the scheme.

        Raises:
            ConfigError: the format does not quantize the head, or both give the same scheme.
        """
        if layer.role == HEAD_ROLE:
            scheme = self._head.scheme(replace(layer, role=ASKED_ROLE))
            if scheme is None:
                raise ConfigError(
                    f"head-quantization is '{self._head.name}', which leaves the head plain.",
                    remedy="Choose another format, or none.",
                )
            self._remember(scheme, self._head)
            return scheme
        if self._body is None:
            return None
        scheme = self._body.scheme(layer)
        if scheme is not None:
            self._remember(scheme, self._body)
        return scheme

    def quantize(self, weight: Tensor, scheme: WeightScheme) -> LinearWeights:
        """By the format that gave the scheme; see `chiplet.api.QuantizationFormat.quantize`."""
        return self._made_by[scheme].quantize(weight, scheme)

    def _remember(self, scheme: WeightScheme, maker: QuantizationFormat) -> None:
        other = self._made_by.setdefault(scheme, maker)
        if other.name != maker.name:
            raise ConfigError(
                f"Formats '{other.name}' and '{maker.name}' both store weights as {scheme}, so "
                "that the head's could not be told from other layers'.",
                remedy="Give --quantization and --head-quantization the same name.",
            )
