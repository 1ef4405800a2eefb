"""Latent attention: all heads ask one row a token, whose first elements are its value."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from triton import cdiv, next_power_of_2

from chiplet.api import (
    AttentionRequest,
    CanonicalLayout,
    Dtype,
    Feature,
    ForwardBatch,
    KvCoding,
    KvLayout,
    No,
)
from chiplet_triton.device import DOT_PRECISION, DeviceTraits, launch_options
from chiplet_triton.kernels.attention_decode import merge_splits_kernel
from chiplet_triton.kernels.attention_latent import latent_kernel, latent_write_kernel

_MAX_VALUE_DIM = 512
_MAX_SPLITS = 64
_CHUNK_ROWS = 64


class LatentTiling(NamedTuple):
    """How `latent_kernel` is cut.

    Attributes:
        rows: of queries, several heads of each token.
        keys: per step of the loop.
        programs_per_core: that its shared memory leaves place for.
    """

    rows: int
    keys: int
    num_warps: int
    num_stages: int
    programs_per_core: int


@dataclass(frozen=True, slots=True)
class LatentPlan:
    """What a step needs to attend.

    Attributes:
        batch: of the step, whose tensors are read on the device.
        num_splits: programs that share the keys of one decoding request.
    """

    batch: ForwardBatch
    num_splits: int


def latent_tiling(request: AttentionRequest, traits: DeviceTraits, *, rows: int) -> LatentTiling:
    """For a device, and as many rows of queries as see the same keys."""
    if request.dtype is Dtype.FLOAT32:
        return LatentTiling(16, 16, 4, 1, 1)
    # Rows of codes become numbers in registers, of which wide tiles leave none.
    has_wide = traits.reads_operands_in_place and traits.sums_in_registers
    if rows > 16 and has_wide and request.kv.coding is None:
        return LatentTiling(64, 64, 8, 2, 1)
    if traits.is_cuda:
        return LatentTiling(16, 32, 8 if request.kv.coding else 4, 3, 2)
    return LatentTiling(16, 32, 4, 2, 1)


def refusal(request: AttentionRequest) -> No | None:
    """Why a request with `value_dim` is not served; None if it is."""
    kv = request.kv
    value_dim = kv.value_dim or 0
    if kv.num_kv_heads != 1:
        return No.because("kv", f"{kv.num_kv_heads} latent rows of a token; served: 1")
    if value_dim > _MAX_VALUE_DIM:
        text = f"values of {value_dim}; served: up to {_MAX_VALUE_DIM}"
        return No.because("value_dim", text)
    if kv.coding is KvCoding.INT8:
        text = "latent rows in int8; served: in 16 or 32 bits, and in fp8"
        return No.because("kv", text, "Give --kv-cache-dtype fp8 or auto.")
    if Feature.CAPTURE in request.features:
        return No.because(
            "capture", "of latent attention; served: of keys with values of their own"
        )
    return None


class LatentAttention:
    """softmax(scale * q k^T + mask) v, where v is part of k.

    Source: arXiv:2405.04434, section 2.1.
    """

    def __init__(self, request: AttentionRequest, traits: DeviceTraits) -> None:
        assert request.kv.value_dim is not None
        self._request, self._traits = request, traits
        self._value_dim = request.kv.value_dim
        self._launch = launch_options(traits)
        self._decode_tiling = latent_tiling(request, traits, rows=request.num_heads)
        self._chunk_tiling = latent_tiling(request, traits, rows=_CHUNK_ROWS)
        self._scale_log2 = request.scale * math.log2(math.e)
        self._score_factor = 1.0
        self._is_fp8 = request.kv.coding is KvCoding.FP8
        self._sizes = {
            "PAGE_SIZE": request.kv.page_size,
            "HEAD_DIM": request.head_dim,
            "VALUE_DIM": self._value_dim,
            "NUM_HEADS": request.num_heads,
            "BLOCK_VALUE": max(16, next_power_of_2(self._value_dim)),
            "BLOCK_REST": max(16, next_power_of_2(request.head_dim - self._value_dim)),
            "HAS_WINDOW": request.window is not None,
            "HAS_SOFTCAP": request.softcap is not None,
            "OVERLAP": traits.can_overlap,
        }
        if request.softcap is not None:
            # tanh of the score by the cap; what it gives is scaled by the cap.
            self._score_factor = request.scale / request.softcap
            self._scale_log2 = request.softcap * math.log2(math.e)

    def layouts(self) -> tuple[KvLayout, ...]:
        """The canonical layout."""
        return (CanonicalLayout(),)

    def plan(self, batch: ForwardBatch, layout: KvLayout) -> LatentPlan:
        """Nothing but sizes: lengths are read on the device, so that a graph may replay it."""
        longest = batch.page_table.shape[1] * self._request.kv.page_size
        if self._request.window is not None:
            longest = min(longest, self._request.window)
        tiling = self._decode_tiling
        heads = min(tiling.rows, next_power_of_2(self._request.num_heads))
        programs = max(1, batch.num_decodes * cdiv(self._request.num_heads, heads))
        wanted = tiling.programs_per_core * self._traits.num_cores // programs
        return LatentPlan(batch, max(1, min(wanted, cdiv(longest, 2 * tiling.keys), _MAX_SPLITS)))

    def run(self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, plan: LatentPlan) -> Tensor:
        """Write, then attend; see `chiplet.api.AttentionImpl.run`."""
        return self._run(q, k, kv, plan, None)

    def run_with_sinks(
        self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, plan: LatentPlan, sinks: Tensor
    ) -> Tensor:
        """Write, then attend; see `chiplet.api.SinkAttention.run_with_sinks`."""
        return self._run(q, k, kv, plan, sinks)

    def _run(
        self, q: Tensor, k: Tensor, kv: Tensor, plan: LatentPlan, sinks: Tensor | None
    ) -> Tensor:
        num_heads = self._request.num_heads
        out = torch.empty(len(q), num_heads, self._value_dim, dtype=q.dtype, device=q.device)
        if self._is_fp8:
            kv = kv.view(torch.float8_e4m3fn)
        latent_write_kernel[(len(k),)](
            k,
            kv,
            plan.batch.kv_rows,
            k.stride(0),
            HEAD_DIM=self._request.head_dim,
            BLOCK_DIM=next_power_of_2(self._request.head_dim),
            OVERLAP=self._traits.can_overlap,
            num_warps=4,
            **self._launch,
        )
        num_decodes = plan.batch.num_decodes
        if num_decodes < plan.batch.num_requests:
            self._attend(q, kv, plan, sinks, out, is_decode=False)
        if num_decodes:
            self._attend(q, kv, plan, sinks, out, is_decode=True)
        return out

    def _attend(
        self,
        q: Tensor,
        kv: Tensor,
        plan: LatentPlan,
        sinks: Tensor | None,
        out: Tensor,
        *,
        is_decode: bool,
    ) -> None:
        """Requests with one new token, or those behind them. Mutates: `out`, at their tokens."""
        request, batch = self._request, plan.batch
        tiling = self._decode_tiling if is_decode else self._chunk_tiling
        block_heads = min(tiling.rows, next_power_of_2(request.num_heads))
        first = 0 if is_decode else batch.num_decodes
        num_requests = batch.num_decodes if is_decode else batch.num_requests - first
        blocks, rows = num_requests, tiling.rows
        if is_decode:
            rows = max(16, block_heads)
        else:
            blocks += len(q) // (rows // block_heads)
        splits = plan.num_splits if is_decode else 1
        partial, lse = self._partial(num_requests, splits, out)
        has_tree = request.has_tree and batch.tree_bits is not None and not is_decode
        latent_kernel[(blocks * cdiv(request.num_heads, block_heads), splits)](
            q,
            kv,
            batch.page_table[first:],
            batch.query_starts[first:],
            batch.kv_lengths[first:],
            batch.positions,
            batch.tree_bits if has_tree else batch.positions,
            batch.kv_lengths if sinks is None else sinks,
            out,
            partial,
            lse,
            num_requests,
            self._scale_log2,
            self._score_factor,
            splits,
            request.window or 0,
            batch.page_table.stride(0),
            q.stride(0),
            q.stride(1),
            **self._sizes,
            BLOCK_HEADS=rows if is_decode else block_heads,
            BLOCK_ROWS=rows,
            BLOCK_KEYS=tiling.keys,
            HAS_SINKS=sinks is not None,
            HAS_TREE=has_tree,
            IS_DECODE=is_decode,
            IS_SPLIT=splits > 1,
            PRECISION=DOT_PRECISION,
            num_warps=tiling.num_warps,
            num_stages=tiling.num_stages,
            **self._launch,
        )
        if splits > 1:
            self._merge(partial, lse, splits, out[:num_requests])

    def _partial(self, num_requests: int, splits: int, out: Tensor) -> tuple[Tensor, Tensor]:
        """Room for results of splits, and for the logarithms of their weights; `out` without."""
        if splits == 1:
            return out, out
        parts = num_requests * self._request.num_heads * splits
        return (
            torch.empty(parts, self._value_dim, dtype=torch.float32, device=out.device),
            torch.empty(parts, dtype=torch.float32, device=out.device),
        )

    def _merge(self, partial: Tensor, lse: Tensor, splits: int, out: Tensor) -> None:
        """Splits of decoding requests made one. Mutates: `out`."""
        merge_splits_kernel[(out.shape[0] * out.shape[1],)](
            partial,
            lse,
            out,
            splits,
            HEAD_DIM=self._value_dim,
            BLOCK_DIM=self._sizes["BLOCK_VALUE"],
            BLOCK_SPLITS=next_power_of_2(splits),
            OVERLAP=self._traits.can_overlap,
            num_warps=8,
            **self._launch,
        )
