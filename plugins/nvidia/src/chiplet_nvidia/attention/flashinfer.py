"""Prompts by FlashAttention-3, as FlashInfer has it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chiplet.api import (
    AttentionRequest,
    BuildContext,
    CanonicalLayout,
    DeviceProbe,
    Feature,
    ForwardBatch,
    KvLayout,
    No,
    Part,
    Platform,
    Tier,
    Verdict,
    Yes,
)
from chiplet_nvidia.attention.mla import (
    FlashInferLatent,
    assess_latent,
    latent_class,
)
from chiplet_nvidia.attention.modules import (
    HEAD_DIMS,
    TYPE_NAMES,
    find_latent_module,
    find_module,
    load_module,
)
from chiplet_nvidia.attention.sending import SendBuffers, aligned

WriteKv = Callable[[Tensor, Tensor, Tensor, Tensor], None]
"""Keys, values, pages and rows: see `chiplet_nvidia.kernels.kv_write.write_kv`."""

_CAPABILITY = "9.0"
_CAUSAL = 1
_TOKENS_FIRST = 0  # of a page's dimensions, heads second
_ALIGNMENT_BYTES = 16
_SMALLEST_TILE = 128
_FIELDS = 7
_FIXED_BYTES = 1 << 14  # offsets of every multiprocessor's work, and alignment


@dataclass(frozen=True, slots=True)
class PromptPlan:
    """What a step needs to attend.

    Attributes:
        page_table: None where no request has anything cached: keys and values are read where they
            were computed.
        schedule: places in `work`, as FlashInfer's `plan` gave them.
        work: who does what, on the device.
    """

    kv_rows: Tensor
    query_starts: Tensor
    page_table: Tensor | None
    schedule: Any
    work: Tensor


class FlashAttention3:
    """softmax(scale * q k^T + mask) v, planned on the host: for steps that are not recorded.

    The last keys of a request share a tile with the first ones of the next, which have no weight
    for it; like every kernel of this family it multiplies their values by zero, so that an infinite
    or NaN value there makes NaN here. Source: arXiv:2407.08608, arXiv:2501.01005.
    """

    def __init__(
        self, request: AttentionRequest, module: Any, platform: Platform, write: WriteKv
    ) -> None:
        """Take the compiled module, and what writes new keys and values to their pages."""
        self._request = request
        self._module = module
        self._write = write
        self._device = platform.torch_device
        self._send_buffers = SendBuffers(platform)
        # Room for partial results, which this kernel has none of.
        self._unused = torch.empty(_ALIGNMENT_BYTES, dtype=torch.uint8, device=self._device)

    def layouts(self) -> tuple[KvLayout, ...]:
        """The canonical layout only."""
        return (CanonicalLayout(),)

    def plan(self, batch: ForwardBatch, layout: KvLayout) -> PromptPlan:
        """Share the work out to multiprocessors, and start sending that to the device."""
        lengths = batch.lengths_host
        if lengths is None:
            raise NotImplementedError("FlashInfer plans by lengths that a recorded step has not")
        num_requests = len(lengths.queries)
        starts = np.full(num_requests + 1, batch.num_tokens, np.int32)
        starts[:-1] -= np.cumsum(lengths.queries[::-1], dtype=np.int32)[::-1]
        has_cached = not np.array_equal(lengths.queries, lengths.kv)
        key_starts = starts
        if has_cached:
            row_width = batch.page_table.stride(0)
            key_starts = np.arange(num_requests + 1, dtype=np.int32) * np.int32(row_width)
        work, schedule = self._schedule(batch.num_tokens, starts, key_starts, lengths.kv)
        page_table = batch.page_table if has_cached else None
        return PromptPlan(batch.kv_rows, batch.query_starts, page_table, schedule, work)

    def _schedule(
        self,
        num_tokens: int,
        starts: np.ndarray,
        key_starts: np.ndarray,
        kv_lengths: np.ndarray,
    ) -> tuple[Tensor, Any]:
        request, num_requests = self._request, len(kv_lengths)
        most_tiles = num_tokens // _SMALLEST_TILE + num_requests
        size = 4 * _FIELDS * most_tiles * request.num_heads + _FIXED_BYTES
        work = torch.empty(size, dtype=torch.uint8, device=self._device)
        schedule = self._module.plan(
            self._unused,
            work,
            self._send_buffers.next(size),
            torch.from_numpy(starts),
            torch.from_numpy(key_starts),
            torch.from_numpy(np.ascontiguousarray(kv_lengths, np.int32)),
            num_tokens,
            num_requests,
            request.num_heads,
            request.num_kv_heads,
            request.kv.page_size,
            False,  # not to be recorded
            request.head_dim,
            request.head_dim,
            True,  # causal
            -1,  # no window
        )
        self._send_buffers.mark_sent()
        return work, schedule

    def run(self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, plan: PromptPlan) -> Tensor:
        """Write, then attend; see `chiplet.api.AttentionImpl.run`."""
        self._write(k, v, kv, plan.kv_rows)
        q = aligned(q)
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        starts = plan.query_starts
        where = (self._unused, plan.work, plan.schedule, q)
        how = (
            out,
            None,  # no logarithms of sums
            _CAUSAL,
            _TOKENS_FIRST,
            -1,  # no window
            False,  # starts when its predecessor has ended
            None,
            None,
            None,
            None,
            0.0,  # scores are not capped
            self._request.scale,
            1.0,  # factor on values
            0,
        )
        if plan.page_table is None:
            self._module.ragged_run(*where, aligned(k), aligned(v), starts, starts, *how)
        else:
            # Lengths and starts of keys are part of the schedule: what stands for them is not read.
            self._module.paged_run(
                *where, kv[:, 0], kv[:, 1], starts, starts, plan.page_table, starts, *how
            )
        return out


class FlashInferProvider:
    """Serves prompts of plain causal attention, and latent attention, on Hopper in 16 bits."""

    name = "flashinfer"
    accepts = frozenset({Feature.LATENT_KV})

    def __init__(self, device: DeviceProbe) -> None:
        self._capability = device.facts.get("capability", "unknown")
        self._num_cores = int(device.facts.get("cores", "132"))

    def assess(self, request: AttentionRequest) -> Verdict:
        """Yes where FlashInfer is installed and its module is compiled."""
        if self._capability != _CAPABILITY:
            text = f"compute capability {self._capability}; served: {_CAPABILITY}"
            return No.because("capability", text)
        if request.dtype not in TYPE_NAMES:
            served = ", ".join(TYPE_NAMES)
            return No.because("dtype", f"{request.dtype}; served: {served}")
        if request.scale <= 0:
            return No.because("scale", f"scores times {request.scale:g}; served: above 0")
        if request.kv.value_dim is not None:
            return assess_latent(request)
        if request.head_dim not in HEAD_DIMS:
            served = ", ".join(map(str, HEAD_DIMS))
            return No.because("head_dim", f"heads of {request.head_dim}; served: {served}")
        found = find_module(request.dtype, request.head_dim)
        if isinstance(found, No):
            return found
        return Yes(Tier.VENDOR, "FlashAttention-3", part=Part.PROMPTS)

    def build(
        self, request: AttentionRequest, context: BuildContext
    ) -> FlashAttention3 | FlashInferLatent:
        """The compiled module, loaded.

        Raises:
            RuntimeError: it is gone since it was found.
        """
        from chiplet_nvidia.kernels.kv_write import write_kv, write_rows  # noqa: PLC0415

        is_latent = request.kv.value_dim is not None
        find = find_latent_module if is_latent else partial(find_module, head_dim=request.head_dim)
        found = find(request.dtype)
        if isinstance(found, No):
            raise RuntimeError(found.reasons[0].text)
        module, platform = load_module(found), context.platform
        if not is_latent:
            return FlashAttention3(request, module, platform, write_kv)
        kind = latent_class(request)
        return kind(request, module, platform, write_rows, num_cores=self._num_cores)
