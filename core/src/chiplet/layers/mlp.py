"""GatedMlp: the feed-forward half of a transformer layer."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from chiplet.api import Op
from chiplet.layers.context import LayerContext
from chiplet.layers.linear import Linear
from chiplet.layers.weights import WeightTarget
from chiplet.parallel.sharding import Shard


class GatedMlp:
    """down(silu(gate(x)) * up(x)). Source: SwiGLU, arXiv:2002.05202."""

    def __init__(
        self,
        context: LayerContext,
        *,
        hidden_size: int,
        intermediate_size: int,
        has_bias: bool,
    ) -> None:
        self.gate_up_proj = Linear(
            context.gating(),
            "gate_up_proj",
            in_features=hidden_size,
            parts={"gate_proj": intermediate_size, "up_proj": intermediate_size},
            has_bias=has_bias,
            shard=Shard.OUTPUT,
        )
        self.down_proj = Linear(
            context,
            "down_proj",
            in_features=intermediate_size,
            parts={"down_proj": hidden_size},
            has_bias=has_bias,
            shard=Shard.INPUT,
        )
        self._gated = self.gate_up_proj.gated(context.op(Op.SILU_MUL))

    def __call__(self, x: Tensor) -> Tensor:
        """Shapes: x and result `[num_tokens, hidden_size]`."""
        return self.down_proj(self._gated(x))

    def weights(self) -> Iterator[tuple[str, WeightTarget]]:
        """Names of the checkpoint's tensors, and where they go."""
        yield from self.gate_up_proj.weights()
        yield from self.down_proj.weights()
