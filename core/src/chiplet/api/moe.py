"""Mixtures of experts: each token goes through the few experts that a router picks for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from chiplet.api.features import Feature
from chiplet.api.linear import Packed
from chiplet.api.provider import Provider
from chiplet.api.quantization import LinearWeights, WeightScheme
from chiplet.config import Dtype

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeRequest:
    """The experts of one layer, each down(silu(gate(x)) * up(x)), and the choice among them.

    Weights of a token's experts are a softmax of the router's logits over all experts, of which
    the `top_k` largest are kept (the first of equal ones).

    Attributes:
        role: the name in `--use moe/ROLE=NAME`.
        hidden_size: width of input and output.
        intermediate_size: width of each expert's middle, or of this rank's slice of it.
        num_experts: in the layer.
        top_k: experts per token.
        renormalize: kept weights are divided by their sum.
        dtype: type of plain weights, input, router logits and output.
        scheme: how the weights of all experts are quantized; None for plain ones. Where it
            quantizes inputs, it does so with those of both products.
    """

    role: str = "experts"
    hidden_size: int
    intermediate_size: int
    num_experts: int
    top_k: int
    renormalize: bool
    dtype: Dtype
    scheme: WeightScheme | None = None

    @property
    def features(self) -> frozenset[Feature]:
        """What goes beyond the plain case: what the scheme needs."""
        return frozenset() if self.scheme is None else self.scheme.features


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertWeights:
    """Weights of all experts of one layer, contiguous, in the request's dtype.

    Where the request has a scheme, `gate_up` and `down` are the numbers alone, `weight` of what
    `gate_up_coded` and `down_coded` hold, which take all experts' outputs for those of one layer:
    experts one above the other, N is `num_experts` times the outputs of one.

    Attributes:
        gate_up: `[num_experts, 2 * intermediate_size, hidden_size]`, gate first.
        down: `[num_experts, hidden_size, intermediate_size]`.
        gate_up_coded: canonical tensors of the scheme; None without one.
        down_coded: the same of the other product.
    """

    gate_up: torch.Tensor
    down: torch.Tensor
    gate_up_coded: LinearWeights | None = None
    down_coded: LinearWeights | None = None

    @classmethod
    def of_coded(
        cls, gate_up: LinearWeights, down: LinearWeights, num_experts: int
    ) -> ExpertWeights:
        """Experts of canonical tensors."""
        return cls(
            gate_up=gate_up.weight.unflatten(0, (num_experts, -1)),
            down=down.weight.unflatten(0, (num_experts, -1)),
            gate_up_coded=gate_up,
            down_coded=down,
        )


class MoeImpl(Protocol):
    """Routing and experts of one layer."""

    def pack(self, weights: ExpertWeights) -> Packed:
        """Weights in the form that `run` takes; called once per layer and rank.

        May keep the tensors; core drops its own references afterwards.

        Shapes: see `ExpertWeights`.
        Mutates: the weights may be taken over or changed.
        """
        ...

    def run(self, x: torch.Tensor, router_logits: torch.Tensor, packed: Packed) -> torch.Tensor:
        """The weighted sum of each token's experts.

        Any number of tokens may pick one expert, none included.

        Shapes: x `[num_tokens, hidden_size]`; router_logits `[num_tokens, num_experts]`; returns
        `[num_tokens, hidden_size]`.
        Mutates: nothing.
        """
        ...


class MoeProvider(Provider[MoeRequest, MoeImpl], Protocol):
    """Offers mixtures of experts."""
