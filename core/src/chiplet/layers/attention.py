"""PagedAttention: the door from a model file to the bound attention implementation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from chiplet.api import AttentionPlan, AttentionRequest, KvSpec, SinkAttention
from chiplet.errors import ModelError
from chiplet.layers.context import LayerContext
from chiplet.layers.weights import Shape, Weight
from chiplet.parallel.sharding import cut_evenly, share, share_or_repeat


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionVariant:
    """How a layer's attention differs from the plain case.

    Attributes:
        group: layers of one group ask for the same, and `--use attention/GROUP=NAME` picks their
            provider; None for 'global', or 'window' where there is one.
        scale: factor on the scores; None for head_dim ** -0.5.
        softcap, has_sinks: see `chiplet.api.AttentionRequest`. With sinks the layer has a weight,
            part 'sinks', `[num_heads]`.
        value_dim: see `chiplet.api.KvSpec`; such a layer is called with v = k.
    """

    group: str | None = None
    scale: float | None = None
    softcap: float | None = None
    has_sinks: bool = False
    value_dim: int | None = None


@dataclass(frozen=True, slots=True)
class AttentionInputs:
    """What attention needs in one step, beside queries, keys and values.

    Attributes:
        kv: the pages of each layer, as its layout says.
        plans: the step's plan of each group of layers.
    """

    kv: Sequence[Tensor]
    plans: Mapping[str, AttentionPlan]


_PLAIN = AttentionVariant()


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
        variant: AttentionVariant = _PLAIN,
    ) -> None:
        """Bind the layer; head counts are those of the whole model."""
        self._layer_index = layer_index
        self._ranks = context.ranks
        self._device = context.device
        self._sinks = torch.empty(0) if variant.has_sinks else None
        self._sink_cut = cut_evenly(num_heads, context.ranks.size, "attention heads", dim=0)
        self.part_shapes: Mapping[str, Shape] = {"sinks": (num_heads,)} if variant.has_sinks else {}
        num_heads = share(num_heads, context.ranks.size, "attention heads")
        num_kv_heads = share_or_repeat(num_kv_heads, context.ranks.size, "key heads")
        self.request = AttentionRequest(
            group=variant.group or ("global" if window is None else "window"),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            scale=head_dim**-0.5 if variant.scale is None else variant.scale,
            dtype=context.dtype,
            kv=KvSpec(
                num_kv_heads=num_kv_heads,
                head_dim=head_dim,
                page_size=context.page_size,
                dtype=context.kv_dtype,
                coding=context.kv_coding,
                value_dim=variant.value_dim,
            ),
            window=window,
            softcap=variant.softcap,
            has_sinks=variant.has_sinks,
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
        num_kv_heads, head_dim]`; where values are parts of keys, the result is as wide as they are.
        Mutates: the layer's pages.
        """
        plan = inputs.plans[self.request.group]
        kv = inputs.kv[self._layer_index]
        if self._sinks is None:
            return self._run(q, k, v, kv, plan)
        return cast(SinkAttention, self.impl).run_with_sinks(q, k, v, kv, plan, self._sinks)

    def load(self, part: str, weight: Weight) -> None:
        """Take the sinks: those of this rank's heads, in float32."""
        assert isinstance(weight, Tensor), "sinks are never in a coding"
        whole = weight.to(self._device, torch.float32)
        self._sinks = self._ranks.join(
            [self._sink_cut.take(whole, rank) for rank in self._ranks.local_ranks]
        )

    def adopt(self, other: PagedAttention) -> bool:
        """Take over the sinks."""
        self._sinks = other._sinks
        return True


def check_groups(layers: Sequence[PagedAttention]) -> None:
    """Refuse a model whose layers of one group ask for different things: they share a plan.

    Raises:
        ModelError: two do.
    """
    requests: dict[str, AttentionRequest] = {}
    for layer in layers:
        mine = layer.request
        other = requests.setdefault(mine.group, mine)
        if other != mine:
            raise ModelError(
                f"Layers of attention group '{mine.group}' ask for different things: {other} and "
                f"{mine}.",
                remedy="Give each kind a group of its own, with AttentionVariant(group=...).",
            )
