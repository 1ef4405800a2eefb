"""Stretches: what a decoder layer does between two attentions, in one call for few tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from chiplet.api.linear import LinearImpl, LinearRequest, Packed
from chiplet.api.provider import BuildContext
from chiplet.api.quantization import LinearWeights

if TYPE_CHECKING:
    import torch


class Product(NamedTuple):
    """A linear layer whose weights are packed.

    Attributes:
        request: what it was asked for.
        impl: what serves it for one token.
        packed: its weights in the form of `impl`.
    """

    request: LinearRequest
    impl: LinearImpl
    packed: Packed


@dataclass(frozen=True, slots=True, kw_only=True)
class StretchRequest:
    """Products with norms, gate and residual sums between them, after an attention:

    - sum = residual + out(attended)
    - total = sum + down(silu(gate) * up), of gate_up(rms_norm(sum, norm))
    - inputs of the next attention = following(rms_norm(total, following_norm))

    Attributes:
        out: of the attention's heads.
        gate_up: its request `is_gated`.
        down: back to the width of the residual.
        following: of the next layer; None after the last one.
        norm: before gate_up, `[hidden_size]`.
        following_norm: before `following`, likewise; None without it.
        eps: of both norms.
    """

    out: Product
    gate_up: Product
    down: Product
    following: Product | None
    norm: torch.Tensor
    following_norm: torch.Tensor | None
    eps: float

    @property
    def products(self) -> tuple[Product, ...]:
        """All of them, in their order."""
        some = (self.out, self.gate_up, self.down)
        return some if self.following is None else (*some, self.following)


class Stretch(Protocol):
    """One stretch of a model, with its weights.

    Attributes:
        max_rows: most tokens of a call.
    """

    max_rows: int

    def run(
        self, attended: torch.Tensor, residual: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The total, and the product that follows; None where the request has none.

        May be called while a step is recorded. Sums and norms need not be rounded where single
        operations round theirs.

        Shapes: attended `[num_tokens, in_features of out]`, contiguous, residual and total
        `[num_tokens, hidden_size]`, product `[num_tokens, out_features of following]`.
        Mutates: nothing.
        """
        ...


@runtime_checkable
class StretchProvider(Protocol):
    """A `LinearProvider` that also offers stretches.

    Optional. Core asks once for each stretch, when all weights are packed; a stretch reads the
    packed weights and keeps no others, since calls of more tokens go to the layers as before.
    """

    def stretch(self, request: StretchRequest, context: BuildContext) -> Stretch | None:
        """The stretch, ready to be recorded; None if its shapes or codings are not served."""
        ...


@runtime_checkable
class StoredLinear(Protocol):
    """A linear implementation that says how its packed weights lie, for whoever reads them too.

    Optional.
    """

    def stored(self, packed: Packed) -> LinearWeights | None:
        """The weights in the form in which `pack` took them, sharing memory with the packed ones;
        None if they lie otherwise.
        """
        ...
