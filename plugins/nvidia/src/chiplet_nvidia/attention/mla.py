"""Latent attention by FlashInfer's kernel for Hopper: all heads ask one row of a token."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chiplet.api import (
    AttentionRequest,
    CanonicalLayout,
    ForwardBatch,
    KvLayout,
    No,
    Part,
    Platform,
    ShapeBucket,
    StepInputs,
    Tier,
    Verdict,
    Yes,
)
from chiplet_nvidia.attention.modules import LATENT_DIMS, find_latent_module
from chiplet_nvidia.attention.sending import SendBuffers, aligned

WriteRows = Callable[[Tensor, Tensor, Tensor], None]
"""New rows, pages and where they go: see `chiplet_nvidia.kernels.kv_write.write_rows`."""

_MOST_HEADS_OF_PROMPTS = 64
"""With more, the rows of one token fill two tiles, and the grid is the same for every batch."""
_CAUSAL = 1
_TILE_ROWS = 64
_MOST_WORKS = 1 << 14
"""Of one schedule. FlashInfer has room for so many, and does not look."""
_MOST_CORES = 1 << 10
_WORK_BYTES = 4 * (9 * _MOST_WORKS + 5 * _MOST_CORES) + 16 * 14
_VALUE_DIM, _KEY_DIM = LATENT_DIMS


class Work(NamedTuple):
    """Who does what.

    Attributes:
        schedule: places in `tensor`, as FlashInfer's `plan` gave them.
        tensor: `[_WORK_BYTES] uint8`, on the device.
    """

    schedule: Any
    tensor: Tensor


@dataclass(frozen=True, slots=True)
class LatentPlan:
    """What a step needs to attend.

    Attributes:
        kv_rows, page_table: as in `ForwardBatch`.
        works: one after another; a step of very many rows has several.
    """

    kv_rows: Tensor
    page_table: Tensor
    works: tuple[Work, ...]


class Segment(NamedTuple):
    """Requests that one schedule is for, on the host; each of them has new tokens.

    Attributes:
        starts: `[n + 1] int32`, first token of each.
        key_starts: `[n + 1] int32`, where the list of pages of each begins in the page table.
        kv_lengths: `[n] int32`, keys that the last of its tokens sees.
    """

    starts: NDArray[np.int32]
    key_starts: NDArray[np.int32]
    kv_lengths: NDArray[np.int32]


class FlashInferLatent:
    """softmax(scale * q k^T + mask) v, where v is part of k, planned on the host.

    Source: arXiv:2405.04434 section 2.1, arXiv:2501.01005.
    """

    def __init__(
        self, request: AttentionRequest, module: Any, platform: Platform, write: WriteRows, *,
        num_cores: int,
    ) -> None:  # fmt: skip
        """Take the compiled module, and what writes new rows to their pages."""
        self._request = request
        self._module = module
        self._write = write
        self._platform = platform
        self._send_works = SendBuffers(platform)
        self._sending = Lock()  # buckets are prepared by a thread of their own
        size = partial_bytes(num_cores)
        self._partial = torch.empty(size, dtype=torch.uint8, device=platform.torch_device)

    def layouts(self) -> tuple[KvLayout, ...]:
        """The canonical layout only."""
        return (CanonicalLayout(),)

    def plan(self, batch: ForwardBatch, layout: KvLayout) -> LatentPlan:
        """Share the work out to multiprocessors, and start sending that to the device."""
        lengths = batch.lengths_host
        if lengths is None:
            raise NotImplementedError("FlashInfer plans by lengths that a recorded step has not")
        ends = batch.num_tokens - np.cumsum(lengths.queries[::-1], dtype=np.int64)[::-1]
        starts = np.append(ends, batch.num_tokens)
        segments = segments_of(
            starts, lengths.kv, batch.page_table.stride(0), num_heads=self._request.num_heads
        )
        works = tuple(self.schedule(each, self.new_work()) for each in segments)
        return LatentPlan(batch.kv_rows, batch.page_table, works)

    def new_work(self) -> Tensor:
        """Room for a schedule on the device."""
        return torch.empty(_WORK_BYTES, dtype=torch.uint8, device=self._partial.device)

    def schedule(self, segment: Segment, work: Tensor) -> Work:
        """Plan, and start sending. Mutates: `work`, in the order of the device's work."""
        with self._sending:
            schedule = self._module.plan(
                self._partial,
                work,
                self._send_works.next(_WORK_BYTES),
                *map(torch.from_numpy, segment),
                self._request.num_heads,
                _VALUE_DIM,
                True,  # causal
            )
            self._send_works.mark_sent()
        return Work(schedule, work)

    def run(self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, plan: LatentPlan) -> Tensor:
        """Write, then attend; see `chiplet.api.AttentionImpl.run`."""
        request = self._request
        self._write(k, kv, plan.kv_rows)
        q = aligned(q)
        out = torch.empty(*q.shape[:2], _VALUE_DIM, dtype=q.dtype, device=q.device)
        rows = kv[:, 0, :, 0]
        for schedule, work in plan.works:
            self._module.run(
                self._partial,
                work,
                schedule,
                q[..., :_VALUE_DIM],
                q[..., _VALUE_DIM:],
                rows[..., :_VALUE_DIM],
                rows[..., _VALUE_DIM:],
                plan.page_table,
                out,
                None,  # no logarithms of sums
                _CAUSAL,
                request.num_heads,
                request.kv.page_size,
                request.scale,
                False,
                1.0,  # factors on the parts of a key
                1.0,
            )
        return out


class RecordableLatent(FlashInferLatent):
    """The same for many heads, whose grid is the same for every batch: it can be recorded too."""

    def __init__(
        self, request: AttentionRequest, module: Any, platform: Platform, write: WriteRows, *,
        num_cores: int,
    ) -> None:  # fmt: skip
        """As `FlashInferLatent` does."""
        super().__init__(request, module, platform, write, num_cores=num_cores)
        self._send_inputs = SendBuffers(platform)  # of all buckets: steps start one by one

    def plan_storage(self, bucket: ShapeBucket, layout: KvLayout) -> LatentStorage:
        """See `chiplet.api.HostPlanning.plan_storage`."""
        return LatentStorage(self, bucket, self._send_inputs, num_heads=self._request.num_heads)


class LatentStorage:
    """Plans of one bucket at fixed addresses; see `chiplet.api.PlanStorage`.

    Attributes:
        plan: reads what the last `update` sent.
    """

    def __init__(
        self, impl: RecordableLatent, bucket: ShapeBucket, send: SendBuffers, *, num_heads: int
    ) -> None:
        """Plan for one token of each request, so that all places are known."""
        self._impl = impl
        self._num_heads = num_heads
        tokens, (requests, pages) = bucket.num_tokens, (bucket.num_requests, bucket.max_pages)
        self._work = impl.new_work()
        self._inputs = torch.zeros(
            tokens + requests * pages, dtype=torch.int32, device=self._work.device
        )
        self._row_width = pages
        self._send = send
        lengths = np.ones(requests, np.int32)
        work = self._schedule(np.arange(requests + 1), lengths)
        table = self._inputs[tokens:].view(requests, pages)
        self.plan = LatentPlan(self._inputs[:tokens], table, (work,))

    def _schedule(self, starts: NDArray[Any], kv_lengths: NDArray[np.int32]) -> Work:
        found = segments_of(starts, kv_lengths, self._row_width, num_heads=self._num_heads)
        # A step that is padding altogether may have no token of anybody: a request of none.
        (segment,) = found or [Segment(*(np.zeros(size, np.int32) for size in (2, 2, 1)))]
        return self._impl.schedule(segment, self._work)

    def update(self, host: StepInputs[NDArray[Any]]) -> None:
        """Plan the step that is launched next; see `chiplet.api.PlanStorage`."""
        self._schedule(host.query_starts, host.kv_lengths)
        size = self._inputs.nbytes
        buffer = self._send.next(size)[:size].view(torch.int32)
        array = buffer.numpy()
        tokens = len(host.kv_rows)
        array[:tokens] = host.kv_rows
        array[tokens:] = host.page_table.reshape(-1)
        self._inputs.copy_(buffer, non_blocking=True)
        self._send.mark_sent()


def segments_of(
    starts: NDArray[Any], kv_lengths: NDArray[np.int32], row_width: int, *, num_heads: int
) -> list[Segment]:
    """Requests with new tokens, cut into segments of no more works than a schedule has room for.

    Shapes: starts `[num_requests + 1]`, first token of each.

    Args:
        starts: of requests.
        kv_lengths: of requests.
        row_width: entries of the page table for each.
        num_heads: of queries.
    """
    # A request of n rows has at most n / 64 + 1 tiles; splits of keys are fewer than cores.
    most_tokens = (_MOST_WORKS // 2) * _TILE_ROWS // num_heads
    pieces = [*_pieces(starts, kv_lengths, most_tokens)]
    segments: list[Segment] = []
    first, tokens = 0, 0
    for at, (_, start, end, _) in enumerate([*pieces, (0, 0, most_tokens + 1, 0)]):
        tokens += end - start
        if at > first and (tokens > most_tokens or at - first >= _MOST_WORKS // 4):
            segments.append(_segment(pieces[first:at], row_width))
            first, tokens = at, end - start
    return segments


def _pieces(
    starts: NDArray[Any], kv_lengths: NDArray[np.int32], most_tokens: int
) -> Iterator[tuple[int, int, int, int]]:
    """Request, first token, end, and keys that the last one sees, of runs of at most so many."""
    bounds = zip(starts[:-1].tolist(), starts[1:].tolist(), kv_lengths.tolist(), strict=True)
    for index, (start, end, length) in enumerate(bounds):
        for first in range(start, end, most_tokens):
            last = min(first + most_tokens, end)
            yield index, first, last, length - (end - last)


def _segment(pieces: list[tuple[int, int, int, int]], row_width: int) -> Segment:
    index, first, last, length = np.array(pieces, np.int32).T
    starts = np.append(first, last[-1:])
    key_starts = np.append(index, index[-1:] + 1) * np.int32(row_width)
    return Segment(starts, key_starts, np.ascontiguousarray(length))


def partial_bytes(num_cores: int) -> int:
    """Room for partial results of every multiprocessor: 16-bit sums and logarithms."""
    return 2 * num_cores * _TILE_ROWS * (2 * _VALUE_DIM + 4) + 32


def assess_latent(request: AttentionRequest) -> Verdict:
    """Yes where FlashInfer is installed and its module for latent rows is compiled."""
    kv = request.kv
    if (kv.value_dim, request.head_dim, kv.num_kv_heads) != (_VALUE_DIM, _KEY_DIM, 1):
        text = (
            f"{kv.num_kv_heads} rows of {request.head_dim} with values of {kv.value_dim}; "
            f"served: 1 of {_KEY_DIM} with {_VALUE_DIM}"
        )
        return No.because("value_dim", text)
    found = find_latent_module(request.dtype)
    if isinstance(found, No):
        return found
    part = Part.PROMPTS if _serves_prompts_alone(request) else Part.ALL
    return Yes(Tier.VENDOR, "FlashInfer's MLA", part=part)


def latent_class(request: AttentionRequest) -> type[FlashInferLatent]:
    """What serves all steps of a request, or its prompts."""
    return FlashInferLatent if _serves_prompts_alone(request) else RecordableLatent


def _serves_prompts_alone(request: AttentionRequest) -> bool:
    return request.num_heads <= _MOST_HEADS_OF_PROMPTS
