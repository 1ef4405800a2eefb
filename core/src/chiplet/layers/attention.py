"""PagedAttention: the door from a model file to the bound attention implementation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from chiplet.api import AttentionPlan, AttentionRequest, KvSpec
from chiplet.layers.context import LayerContext
from chiplet.parallel.sharding import share, share_or_repeat


@dataclass(frozen=True, slots=True)
class AttentionInputs:
    """What attention needs in one step, beside queries, keys and values.

    Attributes:
        kv: the pages of each layer, as its layout says.
        plans: the step's plan of each group of layers.
    """

    kv: Sequence[Tensor]
    plans: Mapping[str, AttentionPlan]


class PagedAttention:
    """Causal attention of one layer over its pages.

    Heads are shared out among ranks. Where ranks outnumber the key heads, several hold the same.

    Attributes:
        request: what was asked of the bindings; layers with the same one form a group.
        impl: what they answered.
    """

    def __init__(
        self,
        context: LayerContext,
        layer_index: int,
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        window: int | None = None,
    ) -> None:
        """Bind the layer; head counts are those of the whole model."""
        self._layer_index = layer_index
        num_heads = share(num_heads, context.ranks.size, "attention heads")
        num_kv_heads = share_or_repeat(num_kv_heads, context.ranks.size, "key heads")
        self.request = AttentionRequest(
            group="global" if window is None else "window",
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            scale=head_dim**-0.5,
            dtype=context.dtype,
            kv=KvSpec(
                num_kv_heads=num_kv_heads,
                head_dim=head_dim,
                page_size=context.page_size,
                dtype=context.kv_dtype,
                coding=context.kv_coding,
            ),
            window=window,
        )
        self.impl = context.bindings.attention(self.request)
        self._run = self.impl.run
        self._head_counts = [num_heads, num_kv_heads, num_kv_heads]
        self._num_all_heads = sum(self._head_counts)

    def split(self, qkv: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values of this rank's heads.

        Shapes: qkv `[num_tokens, (num_heads + 2 * num_kv_heads) * head_dim]`; returns views
        `[num_tokens, num_heads, head_dim]` and two of `[num_tokens, num_kv_heads, head_dim]`.
        """
        heads = qkv.view(-1, self._num_all_heads, self.request.head_dim)
        # Not `split`, which goes through Python once more and takes twice as long.
        return heads.split_with_sizes(self._head_counts, dim=1)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, inputs: AttentionInputs) -> Tensor:
        """Shapes: q and result `[num_tokens, num_heads, head_dim]`; k, v `[num_tokens,
        num_kv_heads, head_dim]`. Mutates: the layer's pages.
        """
        plan = inputs.plans[self.request.group]
        return self._run(q, k, v, inputs.kv[self._layer_index], plan)
