"""Layers of which few tokens go from one attention to the next in one call."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from chiplet.api import Stretch, StretchRequest
from chiplet.layers.attention import AttentionInputs
from chiplet.layers.bindings import Bindings

_NUM_TOKENS = 1
"""What is asked for; an offer may take more, where the same implementations serve more."""

logger = logging.getLogger(__name__)


class AttendsBetween(Protocol):
    """An attention whose projections are apart from it."""

    def attended(self, qkv: Tensor, positions: Tensor, attention: AttentionInputs) -> Tensor:
        """What lies between the projections.

        Shapes: qkv `[num_tokens, ...]`, as `begin` gives it; returns `[num_tokens, ...]`.
        """
        ...


@runtime_checkable
class StretchedLayer(Protocol):
    """A layer that says what it does after its attention, up to the next layer's."""

    @property
    def attention(self) -> AttendsBetween:
        """Its first part."""
        ...

    def begin(self, x: Tensor) -> Tensor:
        """What the first layer does before its attention. Shapes: `[num_tokens, ...]` both."""
        ...

    def stretch_to(
        self, following: StretchedLayer | None, num_tokens: int
    ) -> StretchRequest | None:
        """The request; None where it does something else.

        Args:
            following: the next layer; None after the last one.
            num_tokens: whose implementations it is about.
        """
        ...


class Stretched:
    """All layers of a model, as stretches with attentions between them.

    Attributes:
        max_rows: most tokens of a call.
    """

    def __init__(
        self, layers: Sequence[StretchedLayer], stretches: Sequence[Stretch], max_rows: int
    ) -> None:
        self._begin = layers[0].begin
        self._pairs = [
            (layer.attention.attended, stretch.run)
            for layer, stretch in zip(layers, stretches, strict=True)
        ]
        self.max_rows = max_rows

    def __call__(self, x: Tensor, positions: Tensor, attention: AttentionInputs) -> Tensor:
        """The sum of the last layer, before the model's norm.

        Shapes: x and result `[num_tokens, hidden_size]`.
        """
        qkv: Tensor | None = self._begin(x)
        for attended, run in self._pairs:
            assert qkv is not None, "only the last stretch has nothing after it"
            x, qkv = run(attended(qkv, positions, attention), x)
        return x


def stretched(layers: Sequence[object], bindings: Bindings) -> Stretched | None:
    """Stretches for all layers; None unless every one of them is offered."""
    able = [each for each in layers if isinstance(each, StretchedLayer)]
    if not able or len(able) < len(layers):
        return None
    stretches: list[Stretch] = []
    max_rows: list[int] = []
    for layer, following in zip(able, [*able[1:], None], strict=True):
        request = layer.stretch_to(following, _NUM_TOKENS)
        offer = None if request is None else bindings.stretch(request)
        if request is None or offer is None:
            return None
        stretches.append(offer)
        is_alike = _are_alike(request, layer.stretch_to(following, offer.max_rows))
        max_rows.append(offer.max_rows if is_alike else _NUM_TOKENS)
    found = Stretched(able, stretches, min(max_rows))
    logger.info("Up to %d tokens go from attention to attention in one call.", found.max_rows)
    return found


def _are_alike(few: StretchRequest, many: StretchRequest | None) -> bool:
    """Whether the same implementations serve both."""
    if many is None:
        return False
    pairs = zip(few.products, many.products, strict=True)
    return all(one.impl is other.impl for one, other in pairs)
