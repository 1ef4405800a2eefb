"""Attention by the plugin's own kernels, which read lengths and pages while they run."""

from __future__ import annotations

import torch
from torch import Tensor

from chiplet.api import (
    AttentionRequest,
    BuildContext,
    Feature,
    ForwardBatch,
    KvLayout,
    No,
    Tier,
    Verdict,
    Yes,
)
from chiplet_cpu import native
from chiplet_cpu.attention.layout import WordsInPageLayout

_UNIT = 16
"""Tokens of a page and elements of a head come in vectors of so many."""


class NativeAttention:
    """Blocks of queries against blocks of paged keys and values; see `kernels/attention.h`.

    Nothing is planned on the host: the batch itself is the plan.
    """

    def __init__(self, request: AttentionRequest) -> None:
        self._run = native.library.attention
        self._has_tree = request.has_tree
        self._codes = (native.DTYPE_CODES[request.dtype], native.DTYPE_CODES[request.kv.dtype])
        self._shape = (
            request.num_kv_heads,
            request.num_heads // request.num_kv_heads,
            request.head_dim,
            request.kv.page_size,
            request.window or 0,
            request.scale,
            request.softcap or 0.0,
            native.KV_CODINGS[request.kv.coding],
        )

    def layouts(self) -> tuple[KvLayout, ...]:
        """The order that the kernels multiply in."""
        return (WordsInPageLayout(),)

    def plan(self, batch: ForwardBatch, layout: KvLayout) -> ForwardBatch:
        """Nothing to prepare."""
        return batch

    def run(self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, plan: ForwardBatch) -> Tensor:
        """Write, then attend; see `chiplet.api.AttentionImpl.run`."""
        return self._attend(q, k, v, kv, plan, 0)

    def run_with_sinks(
        self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, plan: ForwardBatch, sinks: Tensor
    ) -> Tensor:
        """Write, then attend; see `chiplet.api.SinkAttention.run_with_sinks`."""
        return self._attend(q, k, v, kv, plan, sinks.data_ptr())

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, plan: ForwardBatch, sinks: int
    ) -> Tensor:
        out = torch.empty(q.shape, dtype=q.dtype)
        q_strides, k_strides, v_strides = q.stride(), k.stride(), v.stride()
        page_table = plan.page_table
        tree_bits = plan.tree_bits if self._has_tree else None
        self._run(
            *self._codes,
            q.data_ptr(),
            *q_strides[:2],
            k.data_ptr(),
            *k_strides[:2],
            v.data_ptr(),
            *v_strides[:2],
            kv.data_ptr(),
            plan.kv_rows.data_ptr(),
            plan.query_starts.data_ptr(),
            plan.kv_lengths.data_ptr(),
            page_table.data_ptr(),
            page_table.stride(0),
            len(q),
            len(page_table),
            *self._shape,
            sinks,
            0 if tree_bits is None else tree_bits.data_ptr(),
            out.data_ptr(),
        )
        return out


class NativeAttentionProvider:
    """Serves causal attention in every type, with all that a model may ask of it."""

    name = "native"
    accepts = frozenset(
        {
            Feature.SLIDING_WINDOW,
            Feature.MIXED_KV_DTYPE,
            Feature.INT8_KV,
            Feature.FP8_KV,
            Feature.SOFTCAP,
            Feature.SINKS,
            Feature.TREE_MASK,
        }
    )

    def assess(self, request: AttentionRequest) -> Verdict:
        """Yes where the kernels could be built and vectors fit into pages and heads."""
        if not native.is_available():
            return No.because("build", native.explanation(), native.remedy())
        if request.kv.page_size % _UNIT:
            return No.because(
                "page size",
                f"{request.kv.page_size} tokens; serves multiples of {_UNIT}",
                f"Give --page-size a multiple of {_UNIT}.",
            )
        if request.head_dim % _UNIT:
            return No.because("head", f"{request.head_dim} wide; serves multiples of {_UNIT}")
        if not request.scale > 0:
            return No.because("scale", f"{request.scale}; serves positive ones")
        if request.softcap is not None and not request.softcap > 0:
            return No.because("softcap", f"{request.softcap}; serves positive ones")
        return Yes(Tier.VENDOR + 10, f"paged, {native.instruction_set()}")

    def build(self, request: AttentionRequest, context: BuildContext) -> NativeAttention:
        """The kernels, bound to the request's shape."""
        return NativeAttention(request)
