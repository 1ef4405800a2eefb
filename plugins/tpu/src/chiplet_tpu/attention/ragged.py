"""Attention by jax's ragged paged attention, a kernel tuned by the makers of the chip."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.ragged_paged_attention import ragged_paged_attention
from torch import Tensor

from chiplet.api import (
    AttentionRequest,
    BuildContext,
    DeviceProbe,
    Dtype,
    Feature,
    ForwardBatch,
    KvLayout,
    No,
    Tier,
    Verdict,
    Yes,
)
from chiplet_tpu.attention.layout import InterleavedLayout
from chiplet_tpu.attention.refusals import refused_head_dim, refused_page_size
from chiplet_tpu.chips import is_emulated
from chiplet_tpu.compilation.arrays import array_of, assign, wrap

_HEAD_DIM = 128
_PAGE_SIZES = (8, 16, 32, 64, 128)
_BLOCK_TOKENS = 128
_QUERIES_PER_BLOCK = 16
_SCRATCH_BYTES = 64 << 20


class RaggedPlan(NamedTuple):
    """The kernel's own arguments, all int32 tensors."""

    kv_lengths: Tensor
    page_table: Tensor
    query_starts: Tensor
    num_requests: Tensor
    kv_rows: Tensor


class RaggedAttention:
    """jax's kernel, behind a scatter of the new keys and values."""

    def __init__(self, request: AttentionRequest) -> None:
        self._precision = "default" if request.dtype is Dtype.BFLOAT16 else "highest"
        self._attend = partial(
            ragged_paged_attention,
            sm_scale=request.scale,
            sliding_window=request.window,
            num_kv_pages_per_block=max(1, _BLOCK_TOKENS // request.kv.page_size),
            num_queries_per_block=_QUERIES_PER_BLOCK,
            vmem_limit_bytes=_SCRATCH_BYTES,
        )

    def layouts(self) -> tuple[KvLayout, ...]:
        """Keys and values interleaved, head by head."""
        return (InterleavedLayout(),)

    def plan(self, batch: ForwardBatch, layout: KvLayout) -> RaggedPlan:
        """Requests with tokens; those of padding come last and have none."""
        has_tokens = batch.query_starts[1:] > batch.query_starts[:-1]
        return RaggedPlan(
            batch.kv_lengths,
            batch.page_table,
            batch.query_starts,
            has_tokens.sum(dim=0, keepdim=True).int(),
            batch.kv_rows,
        )

    def run(self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, plan: RaggedPlan) -> Tensor:
        """Write, then attend; see `chiplet.api.AttentionImpl.run`."""
        kv_lengths, page_table, query_starts, num_requests, kv_rows = map(array_of, plan)
        pages = array_of(kv)
        _, _, width, head_dim = pages.shape
        new = jnp.stack([array_of(k), array_of(v)], axis=2).reshape(-1, width, head_dim)
        rows = pages.reshape(-1, width, head_dim).at[kv_rows].set(new.astype(pages.dtype))
        pages = rows.reshape(pages.shape)
        assign(kv, pages)
        # Its compiler knows no other precision of products of bfloat16.
        with jax.default_matmul_precision(self._precision):
            out = self._attend(
                array_of(q), pages, kv_lengths, page_table, query_starts, num_requests
            )
        return wrap(out)


class RaggedAttentionProvider:
    """Serves head dim 128 on a chip."""

    name = "ragged"
    accepts = frozenset({Feature.SLIDING_WINDOW})

    def __init__(self, device: DeviceProbe) -> None:
        self._is_emulated = is_emulated(device)

    def assess(self, request: AttentionRequest) -> Verdict:
        """Yes to what its compiler takes; it cannot be interpreted."""
        if self._is_emulated:
            return No.because("emulated", "jax cannot interpret this kernel")
        is_listed = request.kv.page_size in _PAGE_SIZES
        refusal = refused_head_dim(request, (_HEAD_DIM,)) or refused_page_size(
            request, is_allowed=is_listed, allowed=", ".join(map(str, _PAGE_SIZES))
        )
        if refusal is not None:
            return refusal
        return Yes(Tier.VENDOR + 20, "jax's ragged paged attention")

    def build(self, request: AttentionRequest, context: BuildContext) -> RaggedAttention:
        """The kernel."""
        return RaggedAttention(request)
