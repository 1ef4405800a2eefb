"""The provider: which slices of which pages a step must look at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chiplet.api import (
    AttentionImpl,
    AttentionRequest,
    BuildContext,
    Feature,
    ForwardBatch,
    KvLayout,
    Tier,
    Verdict,
    Yes,
)
from chiplet_sliced.kernel import SLICE_TOKENS, Slice, attend
from chiplet_sliced.layout import SlicedLayout, planes


@dataclass(frozen=True, slots=True)
class RequestPlan:
    """One request.

    Attributes:
        tokens: its rows of the batch.
        positions: `[num_queries]`, of its tokens.
        pages: `[num_pages] int64`, that its tokens can see.
        first: position of the first token in them.
    """

    tokens: slice
    positions: NDArray[np.int64]
    pages: Tensor
    first: int


@dataclass(frozen=True, slots=True)
class Plan:
    """One step.

    Attributes:
        page_ids: `[num_tokens] int64`, page of each new token.
        offsets: `[num_tokens] int64`, place in it.
    """

    page_ids: Tensor
    offsets: Tensor
    requests: tuple[RequestPlan, ...]


class SlicedAttention:
    """Causal attention of one group of layers."""

    def __init__(self, request: AttentionRequest) -> None:
        self._request = request
        self._slice_pages = max(1, SLICE_TOKENS // request.kv.page_size)

    def layouts(self) -> tuple[KvLayout, ...]:
        """Only pages with transposed keys."""
        return (SlicedLayout(),)

    def plan(self, batch: ForwardBatch, layout: KvLayout) -> Plan:
        """Take the lengths from the host.

        Raises:
            NotImplementedError: the step is recorded, which a kernel of NumPy cannot be.
        """
        if batch.lengths_host is None:
            raise NotImplementedError("NumPy's work leaves no trace in a recorded step")
        lengths = batch.lengths_host.kv.tolist()
        starts = [0, *np.cumsum(batch.lengths_host.queries).tolist()]
        kv_rows, page_size = batch.kv_rows.long(), self._request.kv.page_size
        requests = tuple(
            self._plan_request(slice(start, end), length, pages)
            for start, end, length, pages in zip(
                starts, starts[1:], lengths, batch.page_table, strict=False
            )
            if end > start
        )
        return Plan(kv_rows // page_size, kv_rows % page_size, requests)

    def run(self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, plan: Plan) -> Tensor:
        """Write, then attend. Mutates: `kv`, at the batch's `kv_rows`."""
        request = self._request
        keys, values = planes(kv, request.head_dim)
        keys[plan.page_ids, :, :, plan.offsets] = k.to(kv.dtype)
        values[plan.page_ids, :, plan.offsets] = v.to(kv.dtype)
        out = torch.zeros(q.shape, dtype=q.dtype)
        groups = (request.num_kv_heads, -1)
        for each in plan.requests:
            queries = q[each.tokens].float().unflatten(1, groups).permute(1, 2, 0, 3)
            attended = attend(
                queries.contiguous().numpy(),
                each.positions,
                self._slices(keys, values, each),
                scale=request.scale,
                window=request.window,
            )
            rows = torch.from_numpy(attended).permute(2, 0, 1, 3).flatten(1, 2)
            out[each.tokens] = rows.to(q.dtype)
        return out

    def _plan_request(self, tokens: slice, length: int, pages: Tensor) -> RequestPlan:
        page_size, window = self._request.kv.page_size, self._request.window
        positions = np.arange(length - (tokens.stop - tokens.start), length)
        # Pages that lie before every token's window are not even looked at.
        skipped = 0 if window is None else max(0, int(positions[0]) - window + 1) // page_size
        used = pages[skipped : -(-length // page_size)].long()
        return RequestPlan(tokens, positions, used, skipped * page_size)

    def _slices(self, keys: Tensor, values: Tensor, plan: RequestPlan) -> Iterator[Slice]:
        for number, pages in enumerate(plan.pages.split(self._slice_pages)):
            first = plan.first + number * self._slice_pages * self._request.kv.page_size
            yield Slice(keys[pages].float().numpy(), values[pages].float().numpy(), first)


class SlicedProvider:
    """Serves every type, with windows and caches of another type."""

    name = "sliced"
    accepts = frozenset({Feature.SLIDING_WINDOW, Feature.MIXED_KV_DTYPE})

    def assess(self, request: AttentionRequest) -> Verdict:
        """Yes, below kernels that were made for speed."""
        return Yes(Tier.GENERIC - 50, "NumPy, slices of pages")

    def build(self, request: AttentionRequest, context: BuildContext) -> AttentionImpl:
        """One for each group of layers."""
        return SlicedAttention(request)
