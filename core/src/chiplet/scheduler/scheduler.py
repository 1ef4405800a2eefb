"""Scheduler: who computes which tokens in the next step.

A step may be planned while earlier ones are in flight. Positions therefore run ahead: they move
when a step is planned, and what was picked is learned when it is committed. A request that ends
while a later step already names it keeps its slot and lease until that step is committed too.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from chiplet.config import ScheduleOptions
from chiplet.errors import PromptTooLong, QueueFull
from chiplet.memory.kv_manager import KvManager
from chiplet.memory.radix_tree import token_key
from chiplet.request import FinishReason, Request, RequestOutput, RequestState
from chiplet.scheduler.budget import (
    HEADROOM_TOKENS,
    PromptBudget,
    growth_pages,
    prompt_budget,
)
from chiplet.scheduler.outputs import ending_output, logprobs_of, reason_to_finish, token_output
from chiplet.scheduler.plan_building import Grant, admission_of, build_plan
from chiplet.scheduler.policy import POLICIES, POLICIES_THAT_MATCH
from chiplet.scheduler.slot_table import Running, Slots, SlotTable, wants_prompt_logprobs
from chiplet.scheduler.stats import SchedulerStats, Totals
from chiplet.scheduler.waiting import Waiting, WaitingQueue
from chiplet.step import LogprobRows, SlotAdmission, StepPlan, StepResult

MAX_CANDIDATES = 128
"""Waiting requests looked at in one step, oldest first; a longer queue is served in the order of
arrival, so that its length does not cost time."""

MIN_SHARED_TOKENS = 32
MIN_SHARED_PAGES = 2
"""A prefix shorter than these is sooner computed twice than waited for."""

GROWTH_TOKENS = 16
"""Tokens for which a decoding request takes pages at once, so that pages of one token cost no
more time than larger ones."""


class Scheduler:
    """Admits requests, plans steps, takes their results, ends requests."""

    def __init__(
        self,
        options: ScheduleOptions,
        kv: KvManager,
        *,
        context_length: int,
        headroom_tokens: int = HEADROOM_TOKENS,
    ) -> None:
        """Start with nothing to do.

        Args:
            options: the settings.
            kv: the pages.
            context_length: longest prompt and answer together, in tokens.
            headroom_tokens: see `budget.HEADROOM_TOKENS`.
        """
        self._options = options
        self._kv = kv
        self._policy = POLICIES[options.schedule_policy]
        self._longest_tokens = min(context_length, kv.num_pages * kv.page_size)
        self._headroom_tokens = headroom_tokens
        self._min_shared_tokens = (
            max(MIN_SHARED_PAGES, kv.pages_for(MIN_SHARED_TOKENS)) * kv.page_size
        )
        self._queue = WaitingQueue()
        self._table = SlotTable(options.max_running_requests)
        self._running: dict[str, Running] = {}
        # By slot, in the order of admission: requests with tokens in prefill not yet committed.
        self._prefilling: dict[int, Running] = {}
        # Ended requests that a step in flight still names.
        self._draining: list[Running] = []
        self._in_flight: deque[StepPlan] = deque()
        self._totals = Totals()
        self._num_arrivals = 0

    @property
    def has_work(self) -> bool:
        """Some request waits or runs, or some step is not committed."""
        return bool(self._queue or self._running or self._in_flight)

    @property
    def can_admit(self) -> bool:
        """Whether a request that came now would be the first to get a slot."""
        return not self._queue and self._table.num_free > 0

    def stats(self) -> SchedulerStats:
        """Counts at this moment."""
        kv, totals = self._kv, self._totals
        return SchedulerStats(
            num_running=len(self._running),
            num_waiting=len(self._queue),
            num_total_pages=kv.num_pages,
            num_free_pages=kv.num_free_pages,
            num_cached_pages=kv.num_cached_pages,
            page_size=kv.page_size,
            total_steps=totals.steps,
            total_prompt_tokens=totals.prompt_tokens,
            total_cached_tokens=totals.cached_tokens,
            total_computed_prompt_tokens=totals.computed_prompt_tokens,
            total_output_tokens=totals.output_tokens,
            total_retractions=totals.retractions,
            total_evicted_pages=kv.num_evicted_pages,
            total_finished=totals.finished,
            total_aborted=totals.aborted,
        )

    def add(self, request: Request) -> None:
        """Put a request in waiting order.

        Raises:
            PromptTooLong: no room for the prompt and one token, however empty the cache.
            QueueFull: too many requests wait already.
        """
        assert request.request_id not in self._running, "request ids are unique"
        assert request.request_id not in self._queue, "request ids are unique"
        if request.num_prompt_tokens >= self._longest_tokens:
            raise PromptTooLong(
                f"The prompt has {request.num_prompt_tokens} tokens; prompt and answer together "
                f"may have {self._longest_tokens}. Shorten the prompt.",
                param="prompt",
            )
        # Requests for which a slot is free are about to start; they do not count as queued.
        if len(self._queue) >= self._options.max_queued_requests + self._table.num_free:
            raise QueueFull(
                f"{len(self._queue)} requests are waiting; allowed: "
                f"{self._options.max_queued_requests}. Try again later."
            )
        self._queue.append(Waiting(request, self._num_arrivals, request.prompt_token_ids))
        self._num_arrivals += 1

    def abort(self, request_id: str) -> RequestOutput | None:
        """End a request now and give its last output; None if it is unknown or has ended."""
        if request_id in self._queue:
            request = self._queue.remove(request_id).request
            self._finish(request, FinishReason.ABORT)
        elif request_id in self._running:
            running = self._running[request_id]
            request = running.request
            self._stop(running, FinishReason.ABORT)
            self._release_drained()
        else:
            return None
        self._totals.aborted += 1
        return ending_output(request)

    def schedule(self) -> StepPlan | None:
        """The plan of the next step; None if nothing can run before a commit, or at all."""
        decodes, is_short, resting = self._grant_decodes()
        budget = prompt_budget(self._options, len(decodes), self._num_waiting_tokens())
        grants = self._grant_prefills(budget, resting)
        # What is admitted while pages are short would be retracted next.
        admissions = () if is_short else self._admit(budget, grants)
        if not len(decodes) and not grants:
            assert self._in_flight or not self.has_work, "work is left and nothing can run"
            return None
        plan = build_plan(self._totals.steps, self._table, decodes, grants, admissions)
        self._table.positions[plan.chunks.slots] += plan.chunks.lengths
        self._table.num_in_flight[plan.chunks.slots] += 1
        self._in_flight.append(plan)
        self._totals.steps += 1
        self._totals.computed_prompt_tokens += sum(grant.length for grant in grants)
        return plan

    def commit(self, result: StepResult) -> list[RequestOutput]:
        """Take the result of the oldest step in flight; what it brought to each request."""
        plan = self._in_flight.popleft()
        assert plan.step_id == result.step_id, "steps are committed in the order of their launch"
        table, chunks = self._table, plan.chunks
        table.num_in_flight[chunks.slots] -= 1
        # What a step did for requests that have ended meanwhile is dropped.
        is_live = table.is_active[chunks.slots]
        table.computed[chunks.slots[is_live]] = (chunks.starts + chunks.lengths)[is_live]
        if result.prompt_logprobs is not None:
            self._take_prompt_logprobs(plan, result.prompt_logprobs, is_live)
        self._offer_prefilled(plan, is_live)
        outputs = self._take_tokens(plan, result, is_live)
        self._release_drained()
        return outputs

    def fail(self, plan: StepPlan, message: str) -> list[RequestOutput]:
        """Take note that a step in flight failed: its requests end, nobody else is disturbed."""
        self._in_flight = deque(each for each in self._in_flight if each is not plan)
        slots = plan.chunks.slots
        self._table.num_in_flight[slots] -= 1
        outputs: list[RequestOutput] = []
        for slot in slots[self._table.is_active[slots]].tolist():
            running = self._table.running(slot)
            running.request.error = message
            self._stop(running, FinishReason.ERROR)
            outputs.append(ending_output(running.request))
        self._release_drained()
        return outputs

    def check(self) -> None:
        """Assert that every page is in one place and that requests, slots and leases agree."""
        self._kv.check()
        holders = [*self._running.values(), *self._draining]
        assert self._table.num_free == self._options.max_running_requests - len(holders)
        assert len({running.slot for running in holders}) == len(holders)
        assert self._kv.num_leases == len(holders)
        for running in holders:
            assert self._table.num_pages[running.slot] == running.lease.num_pages
            assert self._table.computed[running.slot] <= self._table.positions[running.slot]

    def _grant_decodes(self) -> tuple[Slots, bool, set[int]]:
        """Slots that decode, whether pages are short, and slots that sit this step out."""
        table = self._table
        slots = table.decodable()
        is_needy = table.positions[slots] >= table.num_pages[slots] * self._kv.page_size
        if not is_needy.any():
            return slots, False, set()
        num_retractions = self._totals.retractions
        resting: set[int] = set()
        needy = [table.running(slot) for slot in slots[is_needy].tolist()]
        for running in sorted(needy, key=lambda running: running.order):
            # An earlier turn of this loop may have retracted it.
            if table.is_active[running.slot] and running.slot not in resting:
                resting |= self._make_room(running)
        is_granted = table.is_active[slots] & ~np.isin(slots, list(resting))
        is_short = bool(resting) or self._totals.retractions > num_retractions
        return slots[is_granted], is_short, resting

    def _make_room(self, running: Running) -> set[int]:
        """Get a page for the next token of a request, at the cost of younger ones if need be.

        Returns:
            Slots that must sit this step out: the page comes when steps in flight are committed.
        """
        table = self._table
        position = int(table.positions[running.slot])
        ahead = min(position + GROWTH_TOKENS, int(table.finals[running.slot]))
        if self._kv.extend(running.lease, ahead):
            table.num_pages[running.slot] = running.lease.num_pages
            return set()
        while not self._kv.extend(running.lease, position + 1):
            if self._draining:
                return {running.slot}
            youngest = max(table.active(), key=lambda each: each.order)
            if table.num_in_flight[youngest.slot]:
                return {running.slot, youngest.slot}
            self._retract(youngest)
            if youngest is running:
                return set()
        table.num_pages[running.slot] = running.lease.num_pages
        return set()

    def _retract(self, running: Running) -> None:
        """Send a request back to the front of the queue; the tree keeps its pages for a while."""
        request = running.request
        del self._running[request.request_id]
        self._prefilling.pop(running.slot, None)
        self._give_back(running)
        request.state = RequestState.WAITING
        self._queue.put_first(
            Waiting(request, running.order, request.token_ids(), is_retracted=True)
        )
        self._totals.retractions += 1

    def _num_waiting_tokens(self) -> int:
        """Prompt tokens not granted yet."""
        table, slots = self._table, list(self._prefilling)
        num_begun = int((table.targets[slots] - table.positions[slots]).sum())
        return num_begun + self._queue.num_tokens

    def _grant_prefills(self, budget: PromptBudget, resting: set[int]) -> list[Grant]:
        table = self._table
        return [
            self._grant(running, budget)
            for running in self._prefilling.values()
            if budget.num_left
            and running.slot not in resting
            and table.positions[running.slot] < table.targets[running.slot]
        ]

    def _grant(self, running: Running, budget: PromptBudget) -> Grant:
        start = int(self._table.positions[running.slot])
        return Grant(running, start, budget.take(len(running.token_ids) - start))

    def _admit(self, budget: PromptBudget, grants: list[Grant]) -> tuple[SlotAdmission, ...]:
        """Give slots and pages to waiting requests while there are any, and add their grants."""
        admissions: list[SlotAdmission] = []
        if not budget.num_left or not self._table.num_free:
            return ()
        candidates = self._candidates()
        for waiting in candidates:
            if not budget.num_left or not self._table.num_free:
                break
            if self._should_wait_for_prefix(waiting):
                continue
            running = self._start(waiting)
            if running is None:
                break
            admissions.append(admission_of(running))
            grants.append(self._grant(running, budget))
            for other in candidates:
                other.num_overtaken += other.order < waiting.order
        return tuple(admissions)

    def _candidates(self) -> list[Waiting]:
        candidates = self._queue.oldest(MAX_CANDIDATES)
        if self._policy in POLICIES_THAT_MATCH:
            for waiting in candidates:
                self._match(waiting)
        return self._policy(candidates)

    def _match(self, waiting: Waiting) -> int:
        """Tokens that the tree has of a waiting request; looked up when the tree has changed."""
        if waiting.generation != self._kv.generation:
            waiting.num_cached_tokens = self._kv.match(waiting.key)
            waiting.generation = self._kv.generation
        return waiting.num_cached_tokens

    def _should_wait_for_prefix(self, waiting: Waiting) -> bool:
        """Whether a request in prefill is about to put a good part of this prompt in the tree.

        It is not waited for when it ends, whatever the reason, so nobody waits for ever.
        """
        if not self._prefilling or not self._kv.is_sharing:
            return False
        if wants_prompt_logprobs(waiting.request):
            return False
        num_tokens = self._match(waiting) + self._min_shared_tokens
        if num_tokens >= len(waiting.token_ids):
            return False
        shared = waiting.key[: num_tokens * waiting.token_ids.itemsize]
        return any(running.key.startswith(shared) for running in self._prefilling.values())

    def _start(self, waiting: Waiting) -> Running | None:
        """Give a slot and a lease to a waiting request; None if too few pages are left."""
        request, kv = waiting.request, self._kv
        num_prompt_tokens, num_tokens = request.num_prompt_tokens, len(waiting.token_ids)
        room = self._longest_tokens - num_prompt_tokens
        max_answer_tokens = min(request.max_output_tokens, room)
        headroom_pages = 0
        if self._running:
            last = num_prompt_tokens + max_answer_tokens - 1
            soon = min(num_tokens + self._headroom_tokens, last)
            headroom_pages = kv.pages_for(soon) - kv.pages_for(min(num_tokens, soon))
            headroom_pages += growth_pages(self._table, kv.page_size, self._headroom_tokens)
        lease = kv.reserve(
            waiting.key,
            may_match=not wants_prompt_logprobs(request),
            num_headroom_pages=headroom_pages,
        )
        if lease is None:
            return None
        self._queue.remove(request.request_id)
        running = self._table.admit(waiting, lease, max_answer_tokens)
        self._running[request.request_id] = self._prefilling[running.slot] = running
        request.state = RequestState.RUNNING
        if not waiting.is_retracted:
            request.num_cached_tokens = lease.num_cached_tokens
            self._totals.prompt_tokens += num_prompt_tokens
            self._totals.cached_tokens += lease.num_cached_tokens
        return running

    def _take_prompt_logprobs(
        self, plan: StepPlan, rows: LogprobRows, is_live: NDArray[np.bool_]
    ) -> None:
        places = np.flatnonzero(plan.prompt_targets >= 0)
        owners = np.repeat(np.arange(len(plan.chunks)), plan.chunks.lengths)[places]
        token_ids = plan.prompt_targets[places].tolist()
        for row, (owner, token_id) in enumerate(zip(owners.tolist(), token_ids, strict=True)):
            if not is_live[owner]:
                continue
            running = self._table.running(int(plan.chunks.slots[owner]))
            num_top = running.request.sampling.prompt_logprobs
            assert running.prompt_logprobs is not None
            assert num_top is not None
            running.prompt_logprobs.append(logprobs_of(rows, row, token_id, num_top))

    def _offer_prefilled(self, plan: StepPlan, is_live: NDArray[np.bool_]) -> None:
        """Offer to the tree what a step computed of prompts, now that it is sure."""
        table, chunks = self._table, plan.chunks
        is_prefill = is_live & (chunks.starts < table.targets[chunks.slots])
        for slot in chunks.slots[is_prefill].tolist():
            running = table.running(slot)
            first_replaced = self._kv.commit(running.lease, running.key, int(table.computed[slot]))
            table.num_sent_pages[slot] = min(table.num_sent_pages[slot], first_replaced)
            if table.computed[slot] >= table.targets[slot]:
                del self._prefilling[slot]

    def _take_tokens(
        self, plan: StepPlan, result: StepResult, is_live: NDArray[np.bool_]
    ) -> list[RequestOutput]:
        table, is_sampled = self._table, plan.chunks.is_sampled
        slots = plan.chunks.slots[is_sampled]
        is_wanted = is_live[is_sampled]
        table.num_known[slots[is_wanted]] += 1
        table.last_tokens[slots[is_wanted]] = result.token_ids[is_wanted]
        token_ids = result.token_ids.tolist()
        return [
            self._take_token(table.running(slot), token_ids[row], result.logprobs, row)
            for row, (slot, wanted) in enumerate(
                zip(slots.tolist(), is_wanted.tolist(), strict=True)
            )
            if wanted
        ]

    def _take_token(
        self, running: Running, token_id: int, rows: LogprobRows | None, row: int
    ) -> RequestOutput:
        request = running.request
        request.output_token_ids.append(token_id)
        self._totals.output_tokens += 1
        reason = reason_to_finish(request, running.max_answer_tokens)
        if reason is not None:
            self._stop(running, reason)
        num_top = request.sampling.logprobs
        logprobs = None
        if num_top is not None:
            assert rows is not None, "a request wants log-probabilities and the step has none"
            logprobs = logprobs_of(rows, row, token_id, num_top)
        prompt_logprobs, running.prompt_logprobs = running.prompt_logprobs, None
        return token_output(request, logprobs, prompt_logprobs)

    def _stop(self, running: Running, reason: FinishReason) -> None:
        """End a running request; its slot and lease go when no step in flight names it."""
        self._finish(running.request, reason)
        del self._running[running.request.request_id]
        self._prefilling.pop(running.slot, None)
        self._table.is_active[running.slot] = False
        self._draining.append(running)

    def _finish(self, request: Request, reason: FinishReason) -> None:
        request.state = RequestState.FINISHED
        request.finish_reason = reason
        self._totals.finished += 1

    def _release_drained(self) -> None:
        drained = [each for each in self._draining if not self._table.num_in_flight[each.slot]]
        if drained:
            self._draining = [each for each in self._draining if each not in drained]
            for running in drained:
                self._give_back(running)

    def _give_back(self, running: Running) -> None:
        key = token_key(running.request.token_ids()) if self._kv.is_sharing else b""
        self._kv.release(running.lease, key, int(self._table.computed[running.slot]))
        self._table.vacate(running.slot)
