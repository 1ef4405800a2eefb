"""Attention by Intel Extension for PyTorch, over pages."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from chiplet.api import (
    AttentionRequest,
    BuildContext,
    Feature,
    ForwardBatch,
    KvLayout,
    KvSpec,
    No,
    Tier,
    Verdict,
    Yes,
)
from chiplet_cpu import ipex

_NO_SCALE = (1.0, 1.0)
"""Of keys and of values; they are looked at for eight bits only."""


class KeysThenValuesLayout:
    """Pages as `[2, num_pages, num_kv_heads, page_size, head_dim]`: all keys, then all values."""

    name = "keys-then-values"

    def shape(self, spec: KvSpec, num_pages: int) -> tuple[int, ...]:
        """Shape of all pages of one layer."""
        return (2, num_pages, spec.num_kv_heads, spec.page_size, spec.head_dim)

    def page_bytes(self, spec: KvSpec) -> int:
        """Bytes of one page of one layer."""
        return 2 * spec.num_kv_heads * spec.page_size * spec.row_bytes

    def to_canonical(self, kv: Tensor, page_ids: Tensor, spec: KvSpec) -> Tensor:
        """Copy pages out."""
        return kv[:, page_ids].permute(1, 0, 3, 2, 4).contiguous()

    def from_canonical(self, canonical: Tensor, kv: Tensor, page_ids: Tensor, spec: KvSpec) -> None:
        """Copy pages in. Mutates: `kv`."""
        kv[:, page_ids] = canonical.permute(1, 0, 3, 2, 4)


class Prompts(NamedTuple):
    """Requests behind the decodes.

    Attributes:
        first: their first token.
        query_starts, kv_starts: `[n + 1] int32`, running sums of lengths, from 0.
        most_queries, most_kv: the largest lengths.
        page_table: `[n, max_pages] int32`.
    """

    first: int
    query_starts: Tensor
    kv_starts: Tensor
    most_queries: int
    most_kv: int
    page_table: Tensor


class Plan(NamedTuple):
    """A step; decodes come first.

    Attributes:
        kv_rows: `[num_tokens] int32`, of the batch.
        kv_lengths: `[num_decodes] int32`.
        page_table: `[num_decodes, max_pages] int32`.
        most_kv: the largest of these lengths.
        prompts: None if there are none.
    """

    kv_rows: Tensor
    kv_lengths: Tensor
    page_table: Tensor
    most_kv: int
    prompts: Prompts | None


class IpexAttention:
    """The extension's kernels for single queries, and for prompts of various lengths."""

    def __init__(self, request: AttentionRequest) -> None:
        self._ops = ipex.operations()
        self._scale = request.scale
        self._softcap = request.softcap or -1.0
        self._window = request.window or -1
        self._page_size = request.kv.page_size
        group = request.num_heads // request.num_kv_heads
        self._kv_heads = torch.arange(request.num_heads, dtype=torch.int32) // group

    def layouts(self) -> tuple[KvLayout, ...]:
        """The one order of elements that the kernels read."""
        return (KeysThenValuesLayout(),)

    def plan(self, batch: ForwardBatch, layout: KvLayout) -> Plan:
        """Lengths and pages in the kernels' form.

        Raises:
            NotImplementedError: the step is recorded; the kernels are told lengths by the host.
        """
        lengths = batch.lengths_host
        if lengths is None:
            raise NotImplementedError("the extension's attention needs lengths on the host")
        n = batch.num_decodes
        table = batch.page_table.contiguous()
        prompts = None
        if batch.num_requests > n and lengths.queries[n:].any():
            starts = batch.query_starts[n:]
            prompts = Prompts(
                first=int(lengths.queries[:n].sum()),
                query_starts=starts - starts[0],
                kv_starts=F.pad(batch.kv_lengths[n:].cumsum(0, dtype=torch.int32), (1, 0)),
                most_queries=int(lengths.queries[n:].max()),
                most_kv=int(lengths.kv[n:].max()),
                page_table=table[n:],
            )
        most_kv = int(lengths.kv[:n].max()) if n else 0
        return Plan(batch.kv_rows, batch.kv_lengths[:n], table[:n], most_kv, prompts)

    def run(self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, plan: Plan) -> Tensor:
        """Write, then attend; see `chiplet.api.AttentionImpl.run`."""
        keys, values = kv.unbind(0)
        self._ops.reshape_and_cache(k, v, keys, values, plan.kv_rows, "auto", *_NO_SCALE)
        q = q.contiguous()
        out = torch.empty_like(q)
        n = len(plan.kv_lengths)
        if n:
            self._ops.single_query_cached_kv_attention(
                out[:n],
                q[:n],
                keys,
                values,
                self._kv_heads,
                self._scale,
                plan.page_table,
                plan.kv_lengths,
                self._page_size,
                plan.most_kv,
                None,
                self._window,
                *_NO_SCALE,
                self._softcap,
            )
        if plan.prompts is not None:
            self._attend_prompts(q, keys, values, plan.prompts, out)
        return out

    def _attend_prompts(
        self, q: Tensor, keys: Tensor, values: Tensor, prompts: Prompts, out: Tensor
    ) -> None:
        """Mutates: `out`, at the prompts' tokens."""
        self._ops.flash_attn_varlen_func(
            out[prompts.first :],
            q[prompts.first :],
            keys,
            values,
            prompts.query_starts,
            prompts.kv_starts,
            prompts.most_queries,
            prompts.most_kv,
            self._scale,
            True,
            prompts.page_table,
            None,
            # Tokens before one's own; the kernel for single queries counts that one too.
            self._window - 1 if self._window > 0 else -1,
            -1,
            "auto",
            *_NO_SCALE,
            self._softcap,
        )


_MOST_PAGE_TOKENS = 128
"""Pages of 256 tokens make the kernel for single queries write beyond its own memory."""


def _refusal(request: AttentionRequest) -> No | None:
    """Why a request cannot be served; found with the conformance kit, as nothing else says it."""
    if request.kv.page_size > _MOST_PAGE_TOKENS:
        return No.because(
            "page size",
            f"{request.kv.page_size} tokens; serves up to {_MOST_PAGE_TOKENS}",
            f"Give --page-size {_MOST_PAGE_TOKENS} or less.",
        )
    if not request.scale > 0:
        return No.because("scale", f"{request.scale}; serves positive ones")
    if request.softcap is not None and not request.softcap > 0:
        return No.because("softcap", f"{request.softcap}; serves positive ones")
    if request.softcap is not None and request.window is not None:
        return No.because("softcap", "together with a window; serves either")
    if request.window == 1:
        return No.because("window", "1 token; serves 2 and more, and takes 1 for all of them")
    return None


class IpexAttentionProvider:
    """Serves causal attention where the extension goes with this torch; see `chiplet_cpu.ipex`."""

    name = "ipex"
    accepts = frozenset({Feature.SLIDING_WINDOW, Feature.SOFTCAP})

    def assess(self, request: AttentionRequest) -> Verdict:
        """Yes if the versions go together; with a score below all kernels of the plugin's own."""
        why = ipex.explanation()
        if why:
            return No.because("version", why, ipex.remedy())
        return _refusal(request) or Yes(
            Tier.GENERIC, f"{ipex.DISTRIBUTION} {ipex.installed()}; {ipex.RETIRED}"
        )

    def build(self, request: AttentionRequest, context: BuildContext) -> IpexAttention:
        """The kernels, bound to the request's shape; imports the extension."""
        return IpexAttention(request)
