from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fossil_attention.layout import PlanesLayout
from chiplet.api import (
    AttentionImpl,
    AttentionRequest,
    BuildContext,
    ForwardBatch,
    KvLayout,
    Tier,
    Verdict,
    Yes,
)


@dataclass(frozen=True)
class Plan:
    """Rows that receive new tokens, and of each request: tokens, pages, KV length."""

    kv_rows: Tensor
    requests: list[tuple[slice, Tensor, int]]


class PlanesAttention:
    """Causal attention, one request at a time."""

    def __init__(self, request: AttentionRequest) -> None:
        self._request = request

    def layouts(self) -> tuple[KvLayout, ...]:
        """Best first; core takes one that all layers of the group can have."""
        return (PlanesLayout(),)

    def plan(self, batch: ForwardBatch, layout: KvLayout) -> Plan:
        """From the lengths on the host."""
        if batch.lengths_host is None:
            raise NotImplementedError("this provider cannot be recorded")
        lengths = batch.lengths_host.kv.tolist()
        starts = [0, *batch.lengths_host.queries.cumsum().tolist()]
        page_size = self._request.kv.page_size
        requests = [
            (slice(starts[i], starts[i + 1]), pages[: -(-length // page_size)].long(), length)
            for i, (pages, length) in enumerate(zip(batch.page_table, lengths))
            if starts[i + 1] > starts[i]  # what is padding has no tokens
        ]
        return Plan(batch.kv_rows.long(), requests)

    def run(self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, plan: Plan) -> Tensor:
        """Write, then attend. Mutates: `kv`, at the batch's `kv_rows`."""
        keys, values = kv.flatten(1, 2)  # [num_pages * page_size, num_kv_heads, head_dim]
        keys[plan.kv_rows], values[plan.kv_rows] = k, v
        out = torch.zeros_like(q)
        for tokens, pages, length in plan.requests:
            past = [kv[i, pages].flatten(0, 1)[:length] for i in (0, 1)]
            queries, past_k, past_v = (each.transpose(0, 1) for each in (q[tokens], *past))
            num_queries = queries.shape[1]
            # Token i sees positions up to length - num_queries + i.
            mask = torch.ones(num_queries, length, dtype=torch.bool).tril(length - num_queries)
            attended = F.scaled_dot_product_attention(
                queries, past_k, past_v, mask, scale=self._request.scale, enable_gqa=True
            )
            out[tokens] = attended.transpose(0, 1)
        return out


class PlanesProvider:
    """Serves the plain case: no window, a cache of the model's type."""

    name = "fossil-attention"
    accepts = frozenset()

    def assess(self, request: AttentionRequest) -> Verdict:
        """Yes, for all that the features let through."""
        return Yes(Tier.GENERIC, "torch's fused attention, request by request")

    def build(self, request: AttentionRequest, context: BuildContext) -> AttentionImpl:
        """One for each group of layers."""
        return PlanesAttention(request)
