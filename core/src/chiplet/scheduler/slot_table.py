"""SlotTable: all that the scheduler knows of running requests, one array row per slot."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from chiplet.memory.kv_manager import KvLease
from chiplet.memory.radix_tree import TokenKey
from chiplet.request import Request, TokenIds, TokenLogprobs
from chiplet.scheduler.waiting import Waiting

Slots = NDArray[np.int64]
"""Slot numbers, `[n] int64`."""


class Running:
    """A request with a slot and a lease; what changes at every step is in the SlotTable.

    Attributes:
        request: the request.
        slot: its row in the tables.
        lease: its pages.
        order: counts arrivals.
        token_ids: what was known at the admission: prompt and answer so far.
        key: the same as the radix tree compares them.
        max_answer_tokens: where the answer ends at the latest.
        prompt_logprobs: those computed so far; None where none are wanted or all are delivered.
    """

    __slots__ = (
        "key",
        "lease",
        "max_answer_tokens",
        "order",
        "prompt_logprobs",
        "request",
        "slot",
        "token_ids",
    )

    def __init__(self, waiting: Waiting, slot: int, lease: KvLease, max_answer_tokens: int) -> None:
        self.request: Request = waiting.request
        self.slot = slot
        self.lease = lease
        self.order = waiting.order
        self.token_ids: TokenIds = waiting.token_ids
        self.key: TokenKey = waiting.key
        self.max_answer_tokens = max_answer_tokens
        self.prompt_logprobs: list[TokenLogprobs] | None = (
            [] if wants_prompt_logprobs(waiting.request) else None
        )


def wants_prompt_logprobs(request: Request) -> bool:
    """Whether log-probabilities of the prompt are still to be delivered."""
    return request.sampling.prompt_logprobs is not None and not request.output_token_ids


class SlotTable:
    """Rows of running requests.

    A request's tokens have positions 0, 1, ...; token `position` is computed in the step that
    picks token `position + 1`, so the last token of an answer is never computed.

    Attributes (each `[num_slots]`):
        is_active: the slot's request runs and has not ended.
        positions: tokens computed, or about to be in steps in flight.
        computed: tokens computed in steps that are committed.
        targets: tokens known at the admission: prefill goes up to here.
        finals: tokens to compute at most, given the length limits of the answer.
        num_prompt_tokens: in the prompt.
        num_known: tokens of prompt and answer that are committed.
        last_tokens: the last of these.
        num_in_flight: steps launched and not committed that name the slot.
        num_pages: in the lease.
        num_sent_pages: pages that the runner knows of.
    """

    def __init__(self, num_slots: int) -> None:
        self.requests: list[Running | None] = [None] * num_slots
        self.is_active = np.zeros(num_slots, dtype=np.bool_)
        self.positions = np.zeros(num_slots, dtype=np.int32)
        self.computed = np.zeros(num_slots, dtype=np.int32)
        self.targets = np.zeros(num_slots, dtype=np.int32)
        self.finals = np.zeros(num_slots, dtype=np.int32)
        self.num_prompt_tokens = np.zeros(num_slots, dtype=np.int32)
        self.num_known = np.zeros(num_slots, dtype=np.int32)
        self.last_tokens = np.zeros(num_slots, dtype=np.int32)
        self.num_in_flight = np.zeros(num_slots, dtype=np.int32)
        self.num_pages = np.zeros(num_slots, dtype=np.int32)
        self.num_sent_pages = np.zeros(num_slots, dtype=np.int32)
        self._free = list(range(num_slots))

    @property
    def num_free(self) -> int:
        """Slots nobody holds."""
        return len(self._free)

    def admit(self, waiting: Waiting, lease: KvLease, max_answer_tokens: int) -> Running:
        """Give a free slot, the lowest, to a request."""
        slot = heapq.heappop(self._free)
        running = Running(waiting, slot, lease, max_answer_tokens)
        num_prompt_tokens = waiting.request.num_prompt_tokens
        self.requests[slot] = running
        self.is_active[slot] = True
        self.positions[slot] = self.computed[slot] = lease.num_cached_tokens
        self.targets[slot] = self.num_known[slot] = len(waiting.token_ids)
        self.finals[slot] = num_prompt_tokens + max_answer_tokens - 1
        self.num_prompt_tokens[slot] = num_prompt_tokens
        self.last_tokens[slot] = waiting.token_ids[-1]
        self.num_in_flight[slot] = 0
        self.num_pages[slot] = lease.num_pages
        self.num_sent_pages[slot] = 0
        return running

    def vacate(self, slot: int) -> None:
        """Make a slot free; no step in flight may name it."""
        assert not self.num_in_flight[slot]
        self.requests[slot] = None
        self.is_active[slot] = False
        heapq.heappush(self._free, slot)

    def running(self, slot: int) -> Running:
        """The request that holds a slot."""
        running = self.requests[slot]
        assert running is not None, f"slot {slot} is free"
        return running

    def active(self) -> Iterator[Running]:
        """Requests that have not ended, by slot."""
        return (self.running(slot) for slot in np.flatnonzero(self.is_active).tolist())

    def decodable(self) -> Slots:
        """Slots whose next token can be computed as soon as the last one is picked."""
        is_ready = (self.positions >= self.targets) & (self.positions < self.finals)
        return np.flatnonzero(self.is_active & is_ready)
