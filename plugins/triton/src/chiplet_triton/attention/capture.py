"""Capture: the tokens that get most weight, found by a second look at the keys of a layer."""

from __future__ import annotations

import torch
from torch import Tensor
from triton import next_power_of_2

from chiplet.api import AttentionRequest, Captured
from chiplet_triton.attention.planning import StepPlan
from chiplet_triton.attention.tiling import block_dim, block_keys, num_splits
from chiplet_triton.device import DOT_PRECISION, DeviceTraits
from chiplet_triton.kernels.attention_capture import capture_kernel, merge_captures_kernel

MOST_CAPTURED = 32
"""Tokens of each head; as many keys at least are looked at together."""
_ROWS = 16


class Capture:
    """The tokens with most weight of each token and head."""

    def __init__(
        self,
        request: AttentionRequest,
        traits: DeviceTraits,
        *,
        scale_log2: float,
        score_factor: float,
    ) -> None:
        self._request = request
        self._num_cores = traits.num_cores
        self._scale_log2 = scale_log2
        self._score_factor = score_factor
        self._keys = block_keys(request)
        self._count = max(2, next_power_of_2(request.num_captured))
        self._group = request.num_heads // request.num_kv_heads
        self._block_group = next_power_of_2(self._group)
        self._rows = max(_ROWS, self._block_group)

    def __call__(self, q: Tensor, kv: Tensor, plan: StepPlan, sinks: Tensor | None) -> Captured:
        """Shapes: see `chiplet.api.CapturingAttention`; kv as the kernels read it."""
        request, num_tokens = self._request, q.shape[0]
        num_requests = plan.kv_lengths.shape[0]
        num_blocks = num_tokens // (self._rows // self._block_group) + num_requests
        longest = plan.page_table.shape[1] * request.kv.page_size
        if request.window is not None:
            longest = min(longest, request.window)
        splits = num_splits(
            programs=num_blocks * request.num_kv_heads,
            longest=longest,
            num_cores=self._num_cores,
            keys=2 * self._keys,
        )
        num_rows, device = num_tokens * request.num_heads, q.device
        partial = torch.empty(num_rows * splits, self._count, dtype=torch.int64, device=device)
        lse = torch.empty(num_rows * splits, dtype=torch.float32, device=device)
        capture_kernel[(num_blocks, request.num_kv_heads, splits)](
            q,
            kv,
            plan.page_table,
            plan.query_starts,
            plan.kv_lengths,
            plan.positions,
            plan.positions if plan.tree_bits is None else plan.tree_bits,
            partial,
            lse,
            num_requests,
            self._scale_log2,
            self._score_factor,
            splits,
            request.window or 0,
            plan.page_table.stride(0),
            q.stride(0),
            q.stride(1),
            PAGE_SIZE=request.kv.page_size,
            NUM_KV_HEADS=request.num_kv_heads,
            HEAD_DIM=request.head_dim,
            GROUP=self._group,
            BLOCK_GROUP=self._block_group,
            BLOCK_ROWS=self._rows,
            BLOCK_DIM=block_dim(request),
            BLOCK_KEYS=self._keys,
            COUNT=self._count,
            HAS_WINDOW=request.window is not None,
            HAS_SOFTCAP=request.softcap is not None,
            HAS_TREE=plan.tree_bits is not None,
            PRECISION=DOT_PRECISION,
            num_warps=4,
            num_stages=2,
        )
        return self._merged(partial, lse, splits, num_tokens, sinks)

    def _merged(
        self, partial: Tensor, lse: Tensor, splits: int, num_tokens: int, sinks: Tensor | None
    ) -> Captured:
        request = self._request
        shape = (num_tokens, request.num_heads, request.num_captured)
        tokens = torch.empty(shape, dtype=torch.int32, device=lse.device)
        weights = torch.empty(shape, dtype=torch.float32, device=lse.device)
        merge_captures_kernel[(num_tokens * request.num_heads,)](
            partial,
            lse,
            lse if sinks is None else sinks,
            tokens,
            weights,
            self._scale_log2,
            splits,
            request.num_captured,
            NUM_HEADS=request.num_heads,
            COUNT=self._count,
            BLOCK_SPLITS=next_power_of_2(splits),
            HAS_SINKS=sinks is not None,
            num_warps=4,
        )
        return Captured(tokens, weights)
