"""Paged attention: split decode, and flash attention for chunks of several tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from triton import cdiv, next_power_of_2

from chiplet.api import (
    AttentionRequest,
    BuildContext,
    Dtype,
    Feature,
    ForwardBatch,
    KvCoding,
    KvLayout,
    No,
    Tier,
    Verdict,
    Yes,
)
from chiplet_triton.attention.layout import TokensInPageLayout
from chiplet_triton.device import DOT_PRECISION, DeviceTraits, launch_options
from chiplet_triton.kernels.attention_decode import decode_kernel, merge_splits_kernel
from chiplet_triton.kernels.attention_extend import extend_kernel
from chiplet_triton.kernels.kv_write import kv_write_kernel

_MAX_HEAD_DIM = 256
_MAX_SPLITS = 64
_PROGRAMS_PER_CORE = 4
_FEW_SPLITS = 4
"""So many programs share a request's keys where many decode: then more programs at a time are
better than more loads on their way in each (on an H100: benchmarks/nvidia_notes.md)."""


class DecodeTiling(NamedTuple):
    """How `decode_kernel` is cut.

    Attributes:
        keys: per step of the loop.
    """

    keys: int
    num_warps: int
    num_stages: int


class Tiling(NamedTuple):
    """How `extend_kernel` is cut.

    Attributes:
        rows: of queries, several heads of each token.
        keys: per step of the loop.
    """

    rows: int
    keys: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What a step needs to attend; all tensors are the batch's own.

    Attributes:
        num_splits: programs that share the keys of one decoding request.
    """

    num_decodes: int
    num_extends: int
    num_splits: int
    kv_rows: Tensor
    query_starts: Tensor
    kv_lengths: Tensor
    page_table: Tensor


class PagedAttention:
    """softmax(scale * q k^T + mask) v over pages. Source: arXiv:2205.14135, arXiv:2307.08691."""

    def __init__(self, request: AttentionRequest, traits: DeviceTraits) -> None:
        self._request = request
        self._traits = traits
        self._group = request.num_heads // request.num_kv_heads
        self._block_dim = max(16, next_power_of_2(request.head_dim))
        self._scale_log2 = request.scale * math.log2(math.e)
        self._score_factor = 1.0
        self._launch = launch_options(traits)
        is_wide = request.dtype is Dtype.FLOAT32 or self._block_dim > 128
        self._tiling = self._extend_tiling(is_wide)
        self._decode_tiling = DecodeTiling(32 if is_wide else 64, 4, 3)
        self._is_fp8 = request.kv.coding is KvCoding.FP8
        if request.softcap is not None:
            # tanh of the score by the cap; what it gives is scaled by the cap.
            self._score_factor = request.scale / request.softcap
            self._scale_log2 = request.softcap * math.log2(math.e)

    def _extend_tiling(self, is_wide: bool) -> Tiling:
        if is_wide:
            tiling = Tiling(64, 32, 4, 2)
        elif self._traits.is_cuda and self._traits.reads_operands_in_place:
            tiling = Tiling(128, 64, 8, 3)
        elif self._traits.is_cuda:
            tiling = Tiling(128, 32, 8, 3)  # with 64 keys, registers spill
        else:
            keys = 64 if self._request.softcap is None else 32  # with 64, registers spill
            tiling = Tiling(128, keys, 4, 3)
        return tiling._replace(rows=max(tiling.rows, next_power_of_2(self._group)))

    def layouts(self) -> tuple[KvLayout, ...]:
        """The canonical layout only."""
        return (TokensInPageLayout(),)

    def plan(self, batch: ForwardBatch, layout: KvLayout) -> StepPlan:
        """Nothing but sizes: lengths are read on the device, so that a graph may replay it."""
        page_size = self._request.kv.page_size
        longest = batch.page_table.shape[1] * page_size
        if self._request.window is not None:
            longest = min(longest, self._request.window)
        return StepPlan(
            batch.num_decodes,
            batch.num_requests - batch.num_decodes,
            self._num_splits(batch.num_decodes, longest),
            batch.kv_rows,
            batch.query_starts,
            batch.kv_lengths,
            batch.page_table,
        )

    def _num_splits(self, num_decodes: int, longest: int) -> int:
        """As many as fill the device, and no more than there are blocks of keys."""
        programs = max(1, num_decodes * self._request.num_kv_heads)
        wanted = _PROGRAMS_PER_CORE * self._traits.num_cores // programs
        return max(1, min(wanted, cdiv(longest, 2 * self._decode_tiling.keys), _MAX_SPLITS))

    def run(self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, plan: StepPlan) -> Tensor:
        """Write, then attend; see `chiplet.api.AttentionImpl.run`."""
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        if self._is_fp8:
            kv = kv.view(torch.float8_e4m3fn)
        if plan.num_extends:
            k, v = self._write(k, v, kv, plan)
            self._extend(q, k, v, kv, plan, out)
        if plan.num_decodes:
            self._decode(q, k, v, kv, plan, out)
        return out

    def _write(self, k: Tensor, v: Tensor, kv: Tensor, plan: StepPlan) -> tuple[Tensor, Tensor]:
        """Keys and values as later steps will see them. Mutates: `kv`."""
        k_seen, v_seen = (
            tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (k, v))
            if self._is_fp8
            else (k, v)
        )
        kv_write_kernel[(k.shape[0],)](
            k,
            v,
            kv,
            plan.kv_rows,
            k_seen,
            v_seen,
            k.stride(0),
            k.stride(1),
            v.stride(0),
            v.stride(1),
            PAGE_SIZE=self._request.kv.page_size,
            NUM_KV_HEADS=self._request.num_kv_heads,
            HEAD_DIM=self._request.head_dim,
            BLOCK_HEADS=next_power_of_2(self._request.num_kv_heads),
            BLOCK_DIM=self._block_dim,
            WRITES_SEEN=self._is_fp8,
        )
        return k_seen, v_seen

    def _extend(
        self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, plan: StepPlan, out: Tensor
    ) -> None:
        """Requests behind the decodes. Mutates: `out`, at their tokens."""
        request, tiling = self._request, self._tiling
        block_group = next_power_of_2(self._group)
        tokens_per_block = tiling.rows // block_group
        num_blocks = q.shape[0] // tokens_per_block + plan.num_extends
        extend_kernel[(num_blocks, request.num_kv_heads)](
            q,
            k,
            v,
            kv,
            plan.page_table[plan.num_decodes :],
            plan.query_starts[plan.num_decodes :],
            plan.kv_lengths[plan.num_decodes :],
            out,
            plan.num_extends,
            self._scale_log2,
            self._score_factor,
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
            BLOCK_GROUP=block_group,
            BLOCK_ROWS=tiling.rows,
            BLOCK_DIM=self._block_dim,
            BLOCK_KEYS=tiling.keys,
            HAS_WINDOW=request.window is not None,
            HAS_SOFTCAP=request.softcap is not None,
            PRECISION=DOT_PRECISION,
            num_warps=tiling.num_warps,
            num_stages=tiling.num_stages,
        )

    def _decode(
        self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, plan: StepPlan, out: Tensor
    ) -> None:
        """Requests with one new token. Mutates: `out`, at their tokens, and `kv`."""
        request, splits, tiling = self._request, plan.num_splits, self._decode_tiling
        rows = plan.num_decodes * request.num_heads * splits
        if splits > 1:
            partial = torch.empty(rows, request.head_dim, dtype=torch.float32, device=q.device)
            lse = torch.empty(rows, dtype=torch.float32, device=q.device)
        else:
            partial = lse = out
        decode_kernel[(plan.num_decodes, request.num_kv_heads, splits)](
            q,
            k,
            v,
            kv,
            plan.kv_rows,
            plan.page_table,
            plan.kv_lengths,
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
            IS_SPLIT=splits > 1,
            PRECISION=DOT_PRECISION,
            OVERLAP=self._traits.can_overlap,
            num_warps=tiling.num_warps,
            num_stages=2 if 1 < splits <= _FEW_SPLITS else tiling.num_stages,
            **self._launch,
        )
        if splits > 1:
            self._merge(partial, lse, plan, out)

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
    """Serves causal attention with grouped keys, in 16 and 32 bits, and with a cache in fp8."""

    name = "triton"
    accepts = frozenset(
        {Feature.SLIDING_WINDOW, Feature.MIXED_KV_DTYPE, Feature.FP8_KV, Feature.SOFTCAP}
    )

    def __init__(self, traits: DeviceTraits) -> None:
        self._traits = traits

    def assess(self, request: AttentionRequest) -> Verdict:
        """Yes for heads of up to 256."""
        if request.head_dim > _MAX_HEAD_DIM:
            return No.because(
                "head_dim", f"heads of {request.head_dim}; served: up to {_MAX_HEAD_DIM}"
            )
        if request.scale <= 0:
            return No.because("scale", f"scores times {request.scale:g}; served: above 0")
        if request.kv.coding is KvCoding.FP8 and not self._traits.has_fp8:
            return No.because("kv", "fp8; this device has no numbers of the kind E4M3")
        return Yes(Tier.GENERIC, "split decode, flash chunks")

    def build(self, request: AttentionRequest, context: BuildContext) -> PagedAttention:
        """Kernels for the request's shapes; compiled at their first launch."""
        return PagedAttention(request, self._traits)
