"""What CPU attention prepares once per step: where to write, what to gather, what to mask."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chiplet.api import AttentionRequest, Dtype, ForwardBatch

TORCH_DTYPES = {
    Dtype.FLOAT32: torch.float32,
    Dtype.FLOAT16: torch.float16,
    Dtype.BFLOAT16: torch.bfloat16,
}

# A gather of this size stays in a processor's outer cache until attention has read it; measured
# on 2 cores of an AVX512_BF16 EPYC with 32 MiB L3, 64 requests of 256 tokens: 0.75, 1.5, 3 and
# 6 MiB take 4.1, 3.0, 2.5 and 2.3 ms.
_GATHER_BYTES = 6 << 20

# Queries of one attention call that needs a mask; bounds the mask's memory.
_QUERY_ROWS = 512


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Requests with one query token each and about the same length, attended in one call.

    Attributes:
        start, end: the group's rows among the decodes, in the plan's order.
        num_columns: keys gathered per request, a multiple of the page size.
        gather: `[2 * num_kv_heads * num_requests * num_pages] int64`, rows of the cache seen as
            `[num_pages * 2 * num_kv_heads, page_size * head_dim]`.
        mask: `[num_requests, 1, 1, num_columns]`, added to scores; None if all is seen.
        unwritten: `[n] int64`, rows of the gathered `[2 * num_kv_heads * num_requests *
            num_columns, head_dim]` that no token was ever written to, and that may be anything.
    """

    start: int
    end: int
    num_columns: int
    gather: Tensor
    mask: Tensor | None
    unwritten: Tensor | None


@dataclass(frozen=True, slots=True)
class QueryRows:
    """Part of a chunk.

    Attributes:
        start, end: tokens of the batch.
        key_start, key_end: gathered keys that some of them see.
        mask: `[end - start, key_end - key_start]`, added to scores; None if causal from the start.
    """

    start: int
    end: int
    key_start: int
    key_end: int
    mask: Tensor | None


@dataclass(frozen=True, slots=True)
class Extend:
    """A request with several query tokens.

    Attributes:
        gather: as in DecodeGroup.
        num_columns: keys gathered.
        rows: its tokens, in parts.
    """

    gather: Tensor
    num_columns: int
    rows: tuple[QueryRows, ...]


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What a step needs to attend.

    Attributes:
        write: `[num_tokens * 2 * num_kv_heads] int64`, rows of the cache seen as
            `[..., head_dim]` that take new keys and values.
        num_decodes: requests with one query token.
        order: `[num_decodes] int64`, decodes by length; None if the batch's order serves.
        groups: of decodes, in that order.
        extends: the other requests.
    """

    write: Tensor
    num_decodes: int
    order: Tensor | None
    groups: tuple[DecodeGroup, ...]
    extends: tuple[Extend, ...]


class Planner:
    """Makes the plans of one group of layers."""

    def __init__(self, request: AttentionRequest) -> None:
        self._page_size = request.kv.page_size
        self._num_rows = 2 * request.kv.num_kv_heads  # keys' and values' heads in a page
        self._page_bytes = (
            self._num_rows * self._page_size * request.head_dim * request.kv.dtype.size_bytes
        )
        self._window = request.window
        self._dtype = TORCH_DTYPES[request.dtype]

    def plan(self, batch: ForwardBatch) -> StepPlan:
        """The plan of one step."""
        # Main memory: the host reads lengths, padding included, where the step has them.
        lengths = batch.kv_lengths.numpy().astype(np.int64)
        pages = batch.page_table.numpy()
        order, groups = self._decodes(lengths[: batch.num_decodes], pages)
        return StepPlan(
            self._write_rows(batch.kv_rows),
            batch.num_decodes,
            order,
            groups,
            self._extends(batch, lengths, pages),
        )

    def _write_rows(self, kv_rows: Tensor) -> Tensor:
        kv_rows = kv_rows.long()
        page = torch.div(kv_rows, self._page_size, rounding_mode="floor")
        offset = kv_rows - page * self._page_size
        heads = torch.arange(self._num_rows)
        first = page * (self._num_rows * self._page_size) + offset
        return (first.unsqueeze(1) + heads * self._page_size).flatten()

    def _gather_rows(self, pages: NDArray[np.int64]) -> Tensor:
        """Rows of the cache for pages of requests, all heads' keys first, then values."""
        heads = np.arange(self._num_rows, dtype=np.int64)
        return torch.from_numpy((pages.reshape(-1) * self._num_rows + heads[:, None]).reshape(-1))

    def _first_pages(self, first_positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The first page that a token at a position sees."""
        if self._window is None:
            return np.zeros_like(first_positions)
        return np.maximum(0, first_positions - self._window + 1) // self._page_size

    def _decodes(
        self, lengths: NDArray[np.int64], pages: NDArray[np.int32]
    ) -> tuple[Tensor | None, tuple[DecodeGroup, ...]]:
        if not len(lengths):
            return None, ()
        first = self._first_pages(lengths - 1)
        counts = -(-lengths // self._page_size) - first
        order = None
        if counts.max() > _longest_beside(int(counts.min())):
            by_length = np.argsort(counts, kind="stable")
            order = torch.from_numpy(by_length)
            lengths, first, counts = lengths[by_length], first[by_length], counts[by_length]
            pages = pages[by_length]
        groups: list[DecodeGroup] = []
        for start, end in self._cuts(counts):
            part = slice(start, end)
            groups.append(self._group(start, lengths[part], first[part], pages[part]))
        return order, tuple(groups)

    def _cuts(self, counts: NDArray[np.int64]) -> list[tuple[int, int]]:
        """Ranges of requests to attend together, from their numbers of pages."""
        cuts: list[tuple[int, int]] = []
        start, shortest, longest = 0, int(counts[0]), int(counts[0])
        for index, count in enumerate(counts.tolist()):
            shortest, longest = min(shortest, count), max(longest, count)
            is_large = (index + 1 - start) * longest * self._page_bytes > _GATHER_BYTES
            if index > start and (is_large or longest > _longest_beside(shortest)):
                cuts.append((start, index))
                start, shortest, longest = index, count, count
        return [*cuts, (start, len(counts))]

    def _group(
        self,
        start: int,
        lengths: NDArray[np.int64],
        first: NDArray[np.int64],
        pages: NDArray[np.int32],
    ) -> DecodeGroup:
        counts = -(-lengths // self._page_size) - first
        columns = np.arange(counts.max())
        # A shorter request is filled up with its own first page, which is mostly written in full:
        # few rows need clearing, and what another request wrote cannot reach it, not even as a
        # NaN times zero.
        is_own = columns < counts[:, None]
        page_index = first[:, None] + np.where(is_own, columns, 0)
        gathered = np.take_along_axis(pages, page_index, axis=1).astype(np.int64)
        offsets = np.arange(self._page_size)
        positions = (page_index[:, :, None] * self._page_size + offsets).reshape(len(lengths), -1)
        is_written = positions < lengths[:, None]
        is_seen = is_written & np.repeat(is_own, self._page_size, axis=1)
        if self._window is not None:
            is_seen &= positions >= (lengths - self._window)[:, None]
        return DecodeGroup(
            start,
            start + len(lengths),
            positions.shape[1],
            self._gather_rows(gathered),
            self._mask(is_seen)[:, None, None] if not is_seen.all() else None,
            self._unwritten(is_written) if not is_written.all() else None,
        )

    def _mask(self, is_seen: NDArray[np.bool_]) -> Tensor:
        mask = torch.zeros(is_seen.shape, dtype=self._dtype)
        return mask.masked_fill_(torch.from_numpy(~is_seen), -torch.inf)

    def _unwritten(self, is_written: NDArray[np.bool_]) -> Tensor:
        rows = np.flatnonzero(~is_written)
        heads = np.arange(self._num_rows)[:, None] * is_written.size
        return torch.from_numpy((heads + rows).reshape(-1))

    def _extends(
        self, batch: ForwardBatch, lengths: NDArray[np.int64], pages: NDArray[np.int32]
    ) -> tuple[Extend, ...]:
        num_queries = np.diff(batch.query_starts.numpy()).astype(np.int64)
        ends = np.cumsum(num_queries)
        positions = lengths - num_queries  # of each request's first query token
        # Requests without a query are padding.
        chosen = np.flatnonzero(num_queries[batch.num_decodes :]) + batch.num_decodes
        band = self._band(positions[chosen].tolist(), num_queries[chosen])
        extends: list[Extend] = []
        for index in chosen.tolist():
            first = int(self._first_pages(positions[index : index + 1])[0])
            last = -(-int(lengths[index]) // self._page_size)
            base = first * self._page_size
            start, position = int(ends[index] - num_queries[index]), int(positions[index])
            rows = self._rows(start, int(ends[index]), position, base, band)
            gather = self._gather_rows(pages[index, first:last].astype(np.int64))
            extends.append(Extend(gather, (last - first) * self._page_size, rows))
        return tuple(extends)

    def _rows(
        self, start: int, end: int, position: int, base: int, band: Tensor | None
    ) -> tuple[QueryRows, ...]:
        """Parts of a chunk whose first token stands at `position`; keys begin at `base`."""
        if not self._needs_mask(position, end - start):
            return (QueryRows(start, end, 0, end - start, None),)
        assert band is not None, "a mask is needed"
        prefix_room = band.shape[1] - band.shape[0]
        parts: list[QueryRows] = []
        for part_start in range(start, end, _QUERY_ROWS):
            part_end = min(part_start + _QUERY_ROWS, end)
            num_rows, at = part_end - part_start, position + part_start - start
            key_start = base if self._window is None else max(base, at - self._window + 1)
            mask = band[:num_rows, prefix_room - (at - key_start) : prefix_room + num_rows]
            parts.append(
                QueryRows(part_start, part_end, key_start - base, at + num_rows - base, mask)
            )
        return tuple(parts)

    def _needs_mask(self, position: int, num_queries: int) -> bool:
        is_cut = self._window is not None and self._window < num_queries
        return position > 0 or is_cut

    def _band(self, positions: list[int], num_queries: NDArray[np.int64]) -> Tensor | None:
        """One mask that all parts of all chunks cut theirs from.

        Row i sees what precedes it by `prefix_room` columns, itself, and no later column.
        """
        masked = [
            (position, int(count))
            for position, count in zip(positions, num_queries, strict=True)
            if self._needs_mask(position, int(count))
        ]
        if not masked:
            return None
        num_rows = min(_QUERY_ROWS, max(count for _, count in masked))
        prefix_room = max(position + count for position, count in masked)
        if self._window is not None:
            prefix_room = min(prefix_room, self._window)
        behind = np.arange(num_rows)[:, None] - (np.arange(prefix_room + num_rows) - prefix_room)
        is_seen = behind >= 0
        if self._window is not None:
            is_seen &= behind < self._window
        return self._mask(is_seen)


def _longest_beside(shortest: int) -> int:
    """The most pages that a request may have in a group whose shortest has `shortest`."""
    return shortest + max(4, shortest // 4)
