"""Paged attention: split decode, and flash attention for chunks of several tokens."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from triton import next_power_of_2

from chiplet.api import (
    AttentionRequest,
    BuildContext,
    CanonicalLayout,
    Captured,
    Feature,
    ForwardBatch,
    KvCoding,
    KvLayout,
    No,
    Tier,
    Verdict,
    Yes,
)
from chiplet_triton.attention.capture import MOST_CAPTURED, Capture
from chiplet_triton.attention.latent import LatentAttention, refusal
from chiplet_triton.attention.layout import ScalesBehindCodesLayout
from chiplet_triton.attention.planning import StepPlan
from chiplet_triton.attention.prefixes import MOST_PARTS, PrefixSharing
from chiplet_triton.attention.tiling import (
    block_dim,
    decode_tiling,
    extend_tiling,
    in_pairs,
    num_splits,
)
from chiplet_triton.device import DOT_PRECISION, DeviceTraits, launch_options
from chiplet_triton.kernels.attention_decode import decode_kernel, merge_splits_kernel
from chiplet_triton.kernels.attention_extend import extend_kernel
from chiplet_triton.kernels.kv_write import kv_write_kernel

_MAX_HEAD_DIM = 256
_FEW_SPLITS = 4
"""So many programs share a request's keys where many decode: then more programs at a time are
better than more loads on their way in each (on an H100: benchmarks/nvidia_notes.md)."""
_CODES = {KvCoding.INT8: torch.int8, KvCoding.FP8: torch.float8_e4m3fn}
"""What the bytes of a coded cache are."""


class NewTokens(NamedTuple):
    """A chunk's keys and values as later steps will see them.

    Attributes:
        k, v: `[num_tokens, num_kv_heads, head_dim]`; keys in int8 are codes.
        k_scales: `[num_tokens, num_kv_heads] float32`, of codes; else anything.
    """

    k: Tensor
    v: Tensor
    k_scales: Tensor


class PagedAttention:
    """softmax(scale * q k^T + mask) v over pages. Source: arXiv:2205.14135, arXiv:2307.08691."""

    def __init__(self, request: AttentionRequest, traits: DeviceTraits) -> None:
        self._request = request
        self._traits = traits
        self._group = request.num_heads // request.num_kv_heads
        self._block_dim = block_dim(request)
        self._scale_log2 = request.scale * math.log2(math.e)
        self._score_factor = 1.0
        self._launch = launch_options(traits)
        self._decode_options = self._launch | {
            "IN_PAIRS": in_pairs(request),
            "IS_PACKED": traits.converts_pairs,
            "PRECISION": DOT_PRECISION,
            "OVERLAP": traits.can_overlap,
        }
        self._tiling = extend_tiling(request, traits)
        coding = request.kv.coding
        self._coded = None if coding is None else _CODES[coding]
        if request.softcap is not None:
            # tanh of the score by the cap; what it gives is scaled by the cap.
            self._score_factor = request.scale / request.softcap
            self._scale_log2 = request.softcap * math.log2(math.e)
        self._sharing = PrefixSharing(request, traits)
        self._capture = Capture(
            request, traits, scale_log2=self._scale_log2, score_factor=self._score_factor
        )

    def layouts(self) -> tuple[KvLayout, ...]:
        """The canonical layout, but for codes with scales."""
        if self._request.kv.coding is KvCoding.INT8:
            return (ScalesBehindCodesLayout(),)
        return (CanonicalLayout(),)

    def plan(self, batch: ForwardBatch, layout: KvLayout) -> StepPlan:
        """Sizes, and what decodes share; lengths are read on the device, as a graph replays it."""
        page_size = self._request.kv.page_size
        longest = batch.page_table.shape[1] * page_size
        if self._request.window is not None:
            longest = min(longest, self._request.window)
        programs = batch.num_decodes * self._request.num_kv_heads
        tiling = decode_tiling(self._request, self._traits, programs=programs, longest=longest)
        splits = num_splits(
            programs=programs, longest=longest, num_cores=self._traits.num_cores, keys=tiling.keys
        )
        return StepPlan(
            batch.num_decodes,
            batch.num_requests - batch.num_decodes,
            tiling,
            splits,
            batch.kv_rows,
            batch.query_starts,
            batch.kv_lengths,
            batch.page_table,
            batch.positions,
            batch.tree_bits if self._request.has_tree else None,
            self._sharing.find(batch) if splits == 1 else None,
        )

    def run(self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, plan: StepPlan) -> Tensor:
        """Write, then attend; see `chiplet.api.AttentionImpl.run`."""
        return self._run(q, k, v, kv, plan, None)

    def run_with_sinks(
        self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, plan: StepPlan, sinks: Tensor
    ) -> Tensor:
        """Write, then attend; see `chiplet.api.SinkAttention.run_with_sinks`."""
        return self._run(q, k, v, kv, plan, sinks)

    def capture(self, q: Tensor, kv: Tensor, plan: StepPlan, sinks: Tensor | None) -> Captured:
        """See `chiplet.api.CapturingAttention.capture`."""
        return self._capture(q, kv if self._coded is None else kv.view(self._coded), plan, sinks)

    def _run(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        kv: Tensor,
        plan: StepPlan,
        sinks: Tensor | None,
    ) -> Tensor:
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        if self._coded is not None:
            kv = kv.view(self._coded)
        if plan.num_extends:
            seen = self._write(k, v, kv, plan)
            self._extend(q, seen, kv, plan, sinks, out)
        if plan.num_decodes:
            self._decode(q, k, v, kv, plan, sinks, out)
        return out

    def _write(self, k: Tensor, v: Tensor, kv: Tensor, plan: StepPlan) -> NewTokens:
        """Keys and values as later steps will see them. Mutates: `kv`."""
        seen = NewTokens(k, v, k)
        if self._coded is not None:
            shape = k.shape
            seen_k, seen_v = (torch.empty(shape, dtype=k.dtype, device=k.device) for _ in range(2))
            scales = torch.empty(shape[:2], dtype=torch.float32, device=k.device)
            seen = NewTokens(seen_k, seen_v, scales)
        kv_write_kernel[(k.shape[0],)](
            k,
            v,
            kv,
            plan.kv_rows,
            *seen,
            k.stride(0),
            k.stride(1),
            v.stride(0),
            v.stride(1),
            PAGE_SIZE=self._request.kv.page_size,
            NUM_KV_HEADS=self._request.num_kv_heads,
            HEAD_DIM=self._request.head_dim,
            BLOCK_HEADS=next_power_of_2(self._request.num_kv_heads),
            BLOCK_DIM=self._block_dim,
            WRITES_SEEN=self._coded is not None,
        )
        return seen

    def _extend(
        self,
        q: Tensor,
        new: NewTokens,
        kv: Tensor,
        plan: StepPlan,
        sinks: Tensor | None,
        out: Tensor,
    ) -> None:
        """Requests behind the decodes. Mutates: `out`, at their tokens."""
        request, tiling = self._request, self._tiling
        block_group = next_power_of_2(self._group)
        tokens_per_block = tiling.rows // block_group
        num_blocks = q.shape[0] // tokens_per_block + plan.num_extends
        extend_kernel[(num_blocks, request.num_kv_heads)](
            q,
            *new,
            kv,
            plan.page_table[plan.num_decodes :],
            plan.query_starts[plan.num_decodes :],
            plan.kv_lengths[plan.num_decodes :],
            plan.positions,
            plan.positions if plan.tree_bits is None else plan.tree_bits,
            plan.kv_lengths if sinks is None else sinks,
            out,
            plan.num_extends,
            self._scale_log2,
            self._score_factor,
            request.window or 0,
            plan.page_table.stride(0),
            q.stride(0),
            q.stride(1),
            new.k.stride(0),
            new.k.stride(1),
            new.v.stride(0),
            new.v.stride(1),
            PAGE_SIZE=request.kv.page_size,
            NUM_KV_HEADS=request.num_kv_heads,
            HEAD_DIM=request.head_dim,
            GROUP=self._group,
            BLOCK_GROUP=block_group,
            BLOCK_ROWS=tiling.rows,
            BLOCK_DIM=self._block_dim,
            BLOCK_KEYS=tiling.keys,
            HAS_WINDOW=request.window is not None,
            HAS_SOFTCAP=request.softcap is not None,
            HAS_SINKS=sinks is not None,
            HAS_TREE=plan.tree_bits is not None,
            PRECISION=DOT_PRECISION,
            num_warps=tiling.num_warps,
            num_stages=tiling.num_stages,
        )

    def _decode(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        kv: Tensor,
        plan: StepPlan,
        sinks: Tensor | None,
        out: Tensor,
    ) -> None:
        """Requests with one new token. Mutates: `out`, at their tokens, and `kv`."""
        request, splits, tiling = self._request, plan.num_splits, plan.decode_tiling
        partial = lse = out
        if splits > 1:
            rows = plan.num_decodes * request.num_heads * splits
            partial = torch.empty(rows, request.head_dim, dtype=torch.float32, device=q.device)
            lse = torch.empty(rows, dtype=torch.float32, device=q.device)
        decode_kernel[(plan.num_decodes, request.num_kv_heads, splits)](
            q,
            k,
            v,
            kv,
            plan.kv_rows,
            plan.page_table,
            plan.kv_lengths,
            plan.kv_lengths if sinks is None else sinks,
            *self._shared(q, kv, plan, unused=(plan.kv_lengths, out)),
            out,
            partial,
            lse,
            self._scale_log2,
            self._score_factor,
            splits,
            request.window or 0,
            plan.page_table.stride(0),
            q.stride(0),
            q.stride(1),
            k.stride(0),
            k.stride(1),
            v.stride(0),
            v.stride(1),
            PAGE_SIZE=request.kv.page_size,
            NUM_KV_HEADS=request.num_kv_heads,
            HEAD_DIM=request.head_dim,
            GROUP=self._group,
            BLOCK_GROUP=max(16, next_power_of_2(self._group)),
            BLOCK_DIM=self._block_dim,
            BLOCK_KEYS=tiling.keys,
            HAS_WINDOW=request.window is not None,
            HAS_SOFTCAP=request.softcap is not None,
            HAS_SINKS=sinks is not None,
            MOST_PARTS=0 if plan.prefixes is None else MOST_PARTS,
            IS_SPLIT=splits > 1,
            num_warps=tiling.num_warps,
            num_stages=2 if 1 < splits <= _FEW_SPLITS else tiling.num_stages,
            **self._decode_options,
        )
        if splits > 1:
            self._merge(partial, lse, plan, out)

    def _shared(
        self, q: Tensor, kv: Tensor, plan: StepPlan, *, unused: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, ...]:
        """What `decode_kernel` reads of prefixes: who shares what, and attention to it."""
        if plan.prefixes is None:
            return (unused[0],) * 2 + (unused[1],) * 2
        parts = self._sharing.attend(
            q,
            kv,
            plan.page_table,
            plan.prefixes,
            scale_log2=self._scale_log2,
            score_factor=self._score_factor,
        )
        return (plan.prefixes.shared_keys, plan.prefixes.counts, *parts)

    def _merge(self, partial: Tensor, lse: Tensor, plan: StepPlan, out: Tensor) -> None:
        """Splits of a decoding request made one. Mutates: `out`, at their tokens."""
        merge_splits_kernel[(plan.num_decodes * self._request.num_heads,)](
            partial,
            lse,
            out,
            plan.num_splits,
            HEAD_DIM=self._request.head_dim,
            BLOCK_DIM=self._block_dim,
            BLOCK_SPLITS=next_power_of_2(plan.num_splits),
            OVERLAP=self._traits.can_overlap,
            num_warps=4,
            **self._launch,
        )


class TritonAttentionProvider:
    """Serves attention with grouped keys in 16 and 32 bits, and with a cache in eight."""

    name = "triton"
    accepts = frozenset(
        {
            Feature.SLIDING_WINDOW,
            Feature.MIXED_KV_DTYPE,
            Feature.INT8_KV,
            Feature.FP8_KV,
            Feature.SOFTCAP,
            Feature.SINKS,
            Feature.TREE_MASK,
            Feature.CAPTURE,
            Feature.LATENT_KV,
        }
    )

    def __init__(self, traits: DeviceTraits) -> None:
        self._traits = traits

    def assess(self, request: AttentionRequest) -> Verdict:
        """Yes for heads of up to 256, and for values of 512 in keys."""
        is_latent = request.kv.value_dim is not None
        no = refusal(request) if is_latent else None
        if no is not None:
            return no
        if request.head_dim > _MAX_HEAD_DIM and not is_latent:
            return No.because(
                "head_dim", f"heads of {request.head_dim}; served: up to {_MAX_HEAD_DIM}"
            )
        if request.scale <= 0:
            return No.because("scale", f"scores times {request.scale:g}; served: above 0")
        if request.kv.coding is KvCoding.FP8 and not self._traits.has_fp8:
            return No.because("kv", "fp8; this device has no numbers of the kind E4M3")
        if request.num_captured > MOST_CAPTURED:
            text = f"{request.num_captured} tokens of each head; served: up to {MOST_CAPTURED}"
            return No.because("capture", text)
        page_codes = request.kv.page_size * request.kv.num_kv_heads * request.head_dim
        if request.kv.coding is KvCoding.INT8 and page_codes % 4:
            text = f"int8, {page_codes} keys in a page; served: multiples of 4"
            return No.because("kv", text, "Give --page-size a multiple of 4.")
        return Yes(Tier.GENERIC, "split decode, flash chunks")

    def build(
        self, request: AttentionRequest, context: BuildContext
    ) -> PagedAttention | LatentAttention:
        """Kernels for the request's shapes; compiled at their first launch."""
        if request.kv.value_dim is not None:
            return LatentAttention(request, self._traits)
        return PagedAttention(request, self._traits)
