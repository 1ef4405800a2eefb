"""Prefixes that decoding requests share are read once for several of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from triton import next_power_of_2

from chiplet.api import AttentionRequest, ForwardBatch
from chiplet_triton.attention.tiling import block_dim, in_pairs, prefix_tiling
from chiplet_triton.device import DOT_PRECISION, DeviceTraits, launch_options
from chiplet_triton.kernels.attention_prefix import group_kernel, order_kernel, prefix_kernel

FEWEST_REQUESTS = 24
"""Of fewer decodes nobody looks for prefixes: what a step would gain is less than it takes.

Source of these and of the cuts: `benchmarks/nvidia_notes.md`, shared prefixes on an H200."""
FEWEST_TOKENS = 128
"""Shorter prefixes are not worth results in parts."""
FEWEST_MEMBERS = 3
"""What two read, the second finds in the device's cache anyway."""
LEAST_SAVED_PERCENT = 40
"""Of the pages that a step reads; below, its second kernel takes what the first one saves."""
MOST_PARTS = 8
_KEYS_OF_PART = 64
_PROGRAMS_PER_CORE = 2
_BLOCK_REQUESTS, _BLOCK_PAGES = 64, 32


class SharedPrefixes(NamedTuple):
    """Who shares what in a step, as the device finds it.

    Attributes:
        order: `[num_decodes] int32`, decodes such that those of a group are neighbours.
        groups: `[3 * most_groups] int32`, of each: place of the first, number of members, pages
            shared.
        counts: `[2] int32`: groups, and parts into which the keys of each are cut.
        shared_keys: `[num_decodes] int32`, of each decode; 0 for one that shares nothing.
    """

    order: Tensor
    groups: Tensor
    counts: Tensor
    shared_keys: Tensor


class PrefixParts(NamedTuple):
    """Attention to shared prefixes alone.

    Attributes:
        out: `[num_decodes, num_heads, MOST_PARTS, head_dim] float32`; what no part of a prefix
            that there is wrote is anything.
        lse: `[num_decodes, num_heads, MOST_PARTS] float32`, logarithms to base 2 of sums.
    """

    out: Tensor
    lse: Tensor


class PrefixSharing:
    """Finds shared prefixes at the start of a step, and attends to them in each layer."""

    def __init__(self, request: AttentionRequest, traits: DeviceTraits) -> None:
        self._request = request
        self._num_programs = _PROGRAMS_PER_CORE * traits.num_cores
        self._tiling = prefix_tiling(request, traits)
        self._group = request.num_heads // request.num_kv_heads
        self._block_group = next_power_of_2(self._group)
        self._members = self._tiling.rows // self._block_group
        self._options = launch_options(traits) | {
            "OVERLAP": traits.can_overlap,
            "IN_PAIRS": in_pairs(request),
            "IS_PACKED": traits.converts_pairs,
        }

    def find(self, batch: ForwardBatch) -> SharedPrefixes | None:
        """Who shares what, by the page table on the device; None where nobody is to look.

        With a window, requests see ends of what they share, each its own. Decodes whose keys are
        split among programs are too few.
        """
        count, device = batch.num_decodes, batch.page_table.device
        if count < FEWEST_REQUESTS or self._request.window is not None or self._members < 2:
            return None
        page_size = self._request.kv.page_size
        # Tensors of their own: kernels are compiled anew for addresses that are aligned otherwise.
        order, common, shared_keys, groups, counts = (
            torch.empty(size, dtype=torch.int32, device=device)
            for size in (count, count, count, 3 * (count // FEWEST_MEMBERS), 2)
        )
        order_kernel[(count,)](
            batch.page_table,
            batch.kv_lengths,
            order,
            common,
            shared_keys,
            count,
            batch.page_table.stride(0),
            PAGE_SIZE=page_size,
            BLOCK_REQUESTS=min(_BLOCK_REQUESTS, next_power_of_2(count)),
            BLOCK_PAGES=_BLOCK_PAGES,
            num_warps=4,
        )
        group_kernel[(1,)](
            order,
            common,
            batch.kv_lengths,
            groups,
            counts,
            shared_keys,
            count,
            self._num_programs,
            PAGE_SIZE=page_size,
            NUM_KV_HEADS=self._request.num_kv_heads,
            MEMBERS=self._members,
            FEWEST_MEMBERS=FEWEST_MEMBERS,
            LEAST_SAVED=LEAST_SAVED_PERCENT,
            FEWEST_PAGES=max(1, FEWEST_TOKENS // page_size),
            MOST_PARTS=MOST_PARTS,
            KEYS_OF_PART=_KEYS_OF_PART,
            BLOCK=next_power_of_2(count),
            num_warps=4,
        )
        return SharedPrefixes(order, groups, counts, shared_keys)

    def attend(
        self,
        q: Tensor,
        kv: Tensor,
        page_table: Tensor,
        prefixes: SharedPrefixes,
        *,
        scale_log2: float,
        score_factor: float,
    ) -> PrefixParts:
        """Attention of decodes to what they share.

        Shapes: q, kv as kernels of decodes read them.
        """
        request, tiling = self._request, self._tiling
        rows = (len(prefixes.order), request.num_heads, MOST_PARTS)
        out = torch.empty(*rows, request.head_dim, dtype=torch.float32, device=q.device)
        lse = torch.empty(rows, dtype=torch.float32, device=q.device)
        prefix_kernel[(self._num_programs,)](
            q,
            kv,
            page_table,
            prefixes.order,
            prefixes.groups,
            prefixes.counts,
            out,
            lse,
            scale_log2,
            score_factor,
            page_table.stride(0),
            q.stride(0),
            q.stride(1),
            PAGE_SIZE=request.kv.page_size,
            NUM_KV_HEADS=request.num_kv_heads,
            HEAD_DIM=request.head_dim,
            GROUP=self._group,
            BLOCK_GROUP=self._block_group,
            MEMBERS=self._members,
            MOST_PARTS=MOST_PARTS,
            BLOCK_DIM=block_dim(request),
            BLOCK_KEYS=tiling.keys,
            HAS_SOFTCAP=request.softcap is not None,
            PRECISION=DOT_PRECISION,
            num_warps=tiling.num_warps,
            num_stages=tiling.num_stages,
            **self._options,
        )
        return PrefixParts(out, lse)
