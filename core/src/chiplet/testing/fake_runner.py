"""FakeRunner: a runner without a device, whose tokens betray every wrong page.

Its KV cache holds one 64-bit number per token. The number depends on the token and all tokens
before it, as keys and values do, and is computed from the number before it as read through the
page table. The next token depends on the numbers of the whole sequence, read the same way. So a
page that is stale, shared by mistake or used twice changes the answer, and `expected_answer` says
what it should have been.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from chiplet.request import Request, TokenIds
from chiplet.sampling_params import SamplingParams
from chiplet.step import Int32s, LogprobRows, StepPlan, StepResult

Numbers = NDArray[np.uint64]

_MASK = 2**64 - 1
# Odd, so that none of their powers vanishes modulo 2**64.
_BASE = 0x9E3779B97F4A7C15
_WEIGHT_BASE = 0xD1B54A32D192ED03
_NO_PAGE = -1


def expected_answer(request: Request, vocab_size: int, context_length: int) -> list[int]:
    """The tokens that a FakeRunner picks for a request if nothing goes wrong."""
    number = digest = 0
    answer: list[int] = []
    sequence = request.prompt_token_ids.tolist()
    room = min(request.max_output_tokens, context_length - len(sequence))
    weights = _powers(_WEIGHT_BASE, context_length).tolist()
    for position in range(context_length):
        number = (number * _BASE + sequence[position] + 1) & _MASK
        digest = (digest + number * weights[position]) & _MASK
        if position + 1 < len(sequence):
            continue
        is_barred = len(answer) < request.sampling.min_tokens
        token_id = _pick(digest, vocab_size, request.end_token_ids if is_barred else ())
        sequence.append(token_id)
        answer.append(token_id)
        if token_id in request.end_token_ids or len(answer) == room:
            break
    return answer


def fake_logprobs(token_ids: Sequence[int], num_top: int, vocab_size: int) -> LogprobRows:
    """The log-probabilities that a FakeRunner reports for tokens."""
    tokens = np.asarray(token_ids, dtype=np.int32)
    places = np.arange(num_top, dtype=np.int32)
    return LogprobRows(
        chosen=-(tokens % 7 + 1).astype(np.float32),
        top_token_ids=(tokens[:, None] + places) % vocab_size,
        top=np.broadcast_to(-(places + 1).astype(np.float32), (len(tokens), num_top)),
    )


class FakePendingStep:
    """A step in flight; see `chiplet.step.PendingStep`."""

    def __init__(
        self, runner: FakeRunner, plan: StepPlan, num_polls: int, error: BaseException | None
    ) -> None:
        self._runner = runner
        self._plan = plan
        self._num_polls_left = num_polls
        self._error = error

    def is_done(self) -> bool:
        """False the first times it is asked, as often as the runner's latency says."""
        self._num_polls_left -= 1
        return self._num_polls_left < 0

    def wait(self) -> StepResult:
        """Run the step and give its result."""
        result = self._runner.finish(self._plan)
        if self._error is not None:
            raise self._error
        return result


class FakeRunner:
    """Runs plans on the host; see `chiplet.step.Runner`.

    A step runs when it is waited for, after those launched before it, so that a plan which
    changes after its launch does harm here.

    Attributes:
        num_launched: steps launched so far.
    """

    def __init__(
        self,
        *,
        num_pages: int,
        page_size: int,
        num_slots: int,
        vocab_size: int,
        latency: int = 0,
    ) -> None:
        """A runner with memory full of rubbish.

        Args:
            num_pages: pages of the KV cache.
            page_size: tokens in a page.
            num_slots: slots of the scheduler.
            vocab_size: tokens are below it.
            latency: how many times `is_done` is False; 0 is a synchronous device.
        """
        self._page_size = page_size
        self._vocab_size = vocab_size
        self._latency = latency
        num_rows = num_pages * page_size
        rubbish = np.random.default_rng(0).integers(0, 2**63, num_rows, dtype=np.uint64)
        self._numbers: Numbers = rubbish
        self._weights = _powers(_WEIGHT_BASE, num_rows)
        self._bases = _powers(_BASE, num_rows + 1)
        self._inverses = _powers(pow(_BASE, -1, 2**64), num_rows)
        self._page_table = np.full((num_slots, num_pages), _NO_PAGE, dtype=np.int32)
        self._last_tokens = np.full(num_slots, -1, dtype=np.int32)
        self._sampling = [SamplingParams()] * num_slots
        self._end_token_ids: list[tuple[int, ...]] = [()] * num_slots
        self._failing_launches: Collection[int] = ()
        self._failing_steps: Collection[int] = ()
        self._make_error: Callable[[str], BaseException] = RuntimeError
        self._in_flight: deque[StepPlan] = deque()
        self.num_launched = 0

    def fail(
        self,
        *,
        launches: Collection[int] = (),
        steps: Collection[int] = (),
        error: Callable[[str], BaseException] = RuntimeError,
    ) -> None:
        """Make the steps of these ids fail, when they are launched or when they are awaited."""
        self._failing_launches = launches
        self._failing_steps = steps
        self._make_error = error

    def launch(self, plan: StepPlan) -> FakePendingStep:
        """Take a plan."""
        _check_shapes(plan)
        if plan.step_id in self._failing_launches:
            raise self._make_error(f"launch {plan.step_id} failed as it was told to")
        self._in_flight.append(plan)
        self.num_launched += 1
        error = None
        if plan.step_id in self._failing_steps:
            error = self._make_error(f"step {plan.step_id} failed as it was told to")
        return FakePendingStep(self, plan, self._latency, error)

    def finish(self, plan: StepPlan) -> StepResult:
        """Run the oldest step in flight, which must be `plan`'s."""
        assert self._in_flight.popleft() is plan, "steps are awaited in the order of their launch"
        for admission in plan.admissions:
            self._page_table[admission.slot] = _NO_PAGE
            self._last_tokens[admission.slot] = -1
            self._sampling[admission.slot] = admission.sampling
            self._end_token_ids[admission.slot] = admission.end_token_ids
        updates = plan.page_updates
        self._page_table[updates.slots, updates.indices] = updates.page_ids
        self._compute(plan)
        token_ids = self._pick_tokens(plan)
        return StepResult(
            step_id=plan.step_id,
            token_ids=np.asarray(token_ids, dtype=np.int32),
            logprobs=self._logprobs(plan, token_ids),
            prompt_logprobs=self._prompt_logprobs(plan),
        )

    def _compute(self, plan: StepPlan) -> None:
        """Write the numbers of all tokens in the step.

        All are computed before any is written: a chunk must not need what another one in the
        same step computes.
        """
        written: list[tuple[NDArray[np.int64], Numbers]] = []
        chunks, first = plan.chunks, 0
        rows = zip(
            chunks.slots.tolist(),
            chunks.starts.tolist(),
            chunks.lengths.tolist(),
            chunks.is_fed.tolist(),
            strict=True,
        )
        for slot, start, length, is_fed in rows:
            tokens = self._last_tokens[[slot]] if is_fed else plan.token_ids[first : first + length]
            assert tokens.min() >= 0, "fed before anything was picked"
            before = np.uint64(0)
            if start:
                before = self._numbers[self._places(slot, start - 1, start)][0]
            places = self._places(slot, start, start + length)
            written.append((places, self._continue(before, tokens)))
            first += length
        for places, numbers in written:
            self._numbers[places] = numbers

    def _continue(self, before: np.uint64, tokens: TokenIds) -> Numbers:
        """Numbers of tokens after `before`: each is the one before it times BASE, plus its own."""
        count = len(tokens)
        sums = np.cumsum((tokens.astype(np.uint64) + np.uint64(1)) * self._inverses[:count])
        return self._bases[1 : count + 1] * before + self._bases[:count] * sums

    def _pick_tokens(self, plan: StepPlan) -> list[int]:
        chunks = plan.chunks
        ends = (chunks.starts + chunks.lengths).tolist()
        picked: list[int] = []
        for row in np.flatnonzero(chunks.is_sampled).tolist():
            slot = int(chunks.slots[row])
            digest = int((self._read(slot, ends[row]) * self._weights[: ends[row]]).sum())
            is_barred = chunks.output_indices[row] < self._sampling[slot].min_tokens
            barred = self._end_token_ids[slot] if is_barred else ()
            picked.append(_pick(digest, self._vocab_size, barred))
            self._last_tokens[slot] = picked[-1]
        return picked

    def _read(self, slot: int, num_tokens: int) -> Numbers:
        return self._numbers[self._places(slot, 0, num_tokens)]

    def _places(self, slot: int, start: int, end: int) -> NDArray[np.int64]:
        """Rows of the KV cache for positions `[start, end)`."""
        positions = np.arange(start, end)
        page_ids = self._page_table[slot, positions // self._page_size].astype(np.int64)
        assert page_ids.min() >= 0, "a page is used that the page table does not have"
        return page_ids * self._page_size + positions % self._page_size

    def _logprobs(self, plan: StepPlan, token_ids: list[int]) -> LogprobRows | None:
        slots = plan.chunks.slots[plan.chunks.is_sampled].tolist()
        wanted = [self._sampling[slot].logprobs for slot in slots]
        counts = [count for count in wanted if count is not None]
        return fake_logprobs(token_ids, max(counts), self._vocab_size) if counts else None

    def _prompt_logprobs(self, plan: StepPlan) -> LogprobRows | None:
        targets = plan.prompt_targets[plan.prompt_targets >= 0].tolist()
        wanted = [self._sampling[slot].prompt_logprobs for slot in plan.chunks.slots.tolist()]
        counts = [count for count in wanted if count is not None]
        return fake_logprobs(targets, max(counts), self._vocab_size) if targets else None


def _check_shapes(plan: StepPlan) -> None:
    chunks, updates = plan.chunks, plan.page_updates
    arrays: list[Int32s] = [
        chunks.slots,
        chunks.starts,
        chunks.lengths,
        chunks.output_indices,
        plan.token_ids,
        plan.prompt_targets,
        updates.slots,
        updates.indices,
        updates.page_ids,
    ]
    assert all(array.dtype == np.int32 for array in arrays)
    assert len(set(chunks.slots.tolist())) == len(chunks) > 0, "a slot appears twice"
    assert (chunks.lengths[: plan.num_decodes] == 1).all()
    assert (chunks.lengths[plan.num_decodes :] > 1).all()
    assert (chunks.lengths[chunks.is_fed] == 1).all()
    assert chunks.lengths.sum() == plan.num_tokens
    assert len(plan.prompt_targets) in (0, plan.num_tokens)
    assert (plan.prompt_targets >= 0).any() or not len(plan.prompt_targets)
    assert (chunks.output_indices >= 0).all()
    assert len(updates.slots) == len(updates.indices) == len(updates.page_ids)


def _pick(digest: int, vocab_size: int, barred: Collection[int]) -> int:
    token_id = (digest ^ digest >> 29) * 0xBF58476D1CE4E5B9 % 2**64 // 2**32 % vocab_size
    while token_id in barred:
        token_id = (token_id + 1) % vocab_size
    return token_id


def _powers(base: int, count: int) -> Numbers:
    powers = np.full(count, base & _MASK, dtype=np.uint64)
    powers[:1] = 1
    return np.cumprod(powers, dtype=np.uint64)
