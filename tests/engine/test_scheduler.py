"""Scheduler: what each step's plan says, and what its result does."""

from __future__ import annotations

import numpy as np
import pytest

from chiplet.config import ScheduleOptions
from chiplet.errors import PromptTooLong, QueueFull
from chiplet.memory.kv_manager import KvManager
from chiplet.request import FinishReason, Request, RequestOutput, RequestState
from chiplet.sampling_params import SamplingParams
from chiplet.scheduler.policy import MAX_OVERTAKEN
from chiplet.scheduler.scheduler import Scheduler
from chiplet.step import StepPlan, StepResult
from chiplet.testing.fake_requests import make_request
from chiplet.testing.fake_runner import fake_logprobs

TOKEN = 7
END = 9


def scheduler(
    num_pages: int = 64,
    page_size: int = 4,
    *,
    slots: int = 8,
    chunk: int = 64,
    mixed: int | None = None,
    policy: str = "fcfs",
    radix_cache: bool = True,
    context_length: int = 256,
    max_queued: int = 1000,
    headroom_tokens: int = 0,
) -> Scheduler:
    options = ScheduleOptions(
        schedule_policy=policy,
        max_running_requests=slots,
        chunked_prefill_size=chunk,
        mixed_prefill_size=mixed,
        max_queued_requests=max_queued,
    )
    kv = KvManager(num_pages=num_pages, page_size=page_size, radix_cache=radix_cache)
    return Scheduler(options, kv, context_length=context_length, headroom_tokens=headroom_tokens)


def request(
    name: str, num_prompt_tokens: int, max_tokens: int = 8, first: int = 1000, **sampling: int
) -> Request:
    """A request whose prompt shares nothing with others of another `first`."""
    return make_request(
        name,
        range(first, first + num_prompt_tokens),
        SamplingParams(max_tokens=max_tokens, **sampling),
        end_token_ids=[END],
    )


def plan_of(s: Scheduler) -> StepPlan:
    plan = s.schedule()
    assert plan is not None
    return plan


def commit(s: Scheduler, plan: StepPlan, token_id: int = TOKEN) -> list[RequestOutput]:
    num_sampled = int(plan.chunks.is_sampled.sum())
    token_ids = np.full(num_sampled, token_id, dtype=np.int32)
    outputs = s.commit(StepResult(step_id=plan.step_id, token_ids=token_ids))
    s.check()
    return outputs


def run_step(s: Scheduler, token_id: int = TOKEN) -> tuple[StepPlan, list[RequestOutput]]:
    plan = plan_of(s)
    return plan, commit(s, plan, token_id)


def test_nothing_to_do() -> None:
    s = scheduler()
    assert not s.has_work
    assert s.schedule() is None


def test_a_prompt_is_computed_in_chunks_and_only_the_last_is_sampled() -> None:
    s = scheduler(chunk=4)
    s.add(request("a", 10))
    seen = []
    for _ in range(3):
        plan, outputs = run_step(s)
        chunks = plan.chunks
        seen.append((int(chunks.starts[0]), int(chunks.lengths[0]), bool(chunks.is_sampled[0])))
        assert plan.token_ids.tolist() == list(
            range(1000 + seen[-1][0], 1000 + seen[-1][0] + seen[-1][1])
        )
    assert seen == [(0, 4, False), (4, 4, False), (8, 2, True)]
    assert outputs[0].token_ids == (TOKEN,)


def test_few_prompt_tokens_come_along_with_decodes_in_steps_of_whole_multiples() -> None:
    s = scheduler(num_pages=128, chunk=64, mixed=8)
    s.add(request("alone", 40, first=100))
    assert run_step(s)[0].num_tokens == 40, "nobody decodes: the whole prompt"
    s.add(request("second", 30, first=300))
    # One decode and at least 8 tokens of the prompt: 16 together, twice; one token is left.
    assert [run_step(s)[0].num_tokens for _ in range(3)] == [16, 16, 2]
    s.add(request("third", 100, first=500))
    s.add(request("fourth", 100, first=700))
    assert run_step(s)[0].num_tokens == 2 + 64, "many wait: as many as a step takes"


def test_decodes_come_before_single_prompt_tokens_and_those_before_chunks() -> None:
    s = scheduler(chunk=6)
    s.add(request("decoding", 3, first=100))
    run_step(s)
    s.add(request("single", 1, first=200))
    s.add(request("long", 9, first=300))
    plan = plan_of(s)
    assert plan.num_decodes == 2
    assert plan.chunks.lengths.tolist() == [1, 1, 5]
    assert plan.token_ids.tolist() == [TOKEN, 200, 300, 301, 302, 303, 304]
    assert plan.chunks.is_sampled.tolist() == [True, True, False]
    assert plan.chunks.output_indices.tolist() == [1, 0, 0]
    assert [each.slot for each in plan.admissions] == plan.chunks.slots.tolist()[1:]


def test_the_budget_counts_prompt_tokens_only() -> None:
    s = scheduler(chunk=3)
    for index in range(3):
        s.add(request(f"r{index}", 1, first=100 * index))
    run_step(s)
    s.add(request("late", 5, first=900))
    plan = plan_of(s)
    assert plan.chunks.lengths.tolist() == [1, 1, 1, 3]


def test_a_step_planned_ahead_is_fed_by_the_device() -> None:
    s = scheduler()
    s.add(request("a", 3, max_tokens=3))
    first = plan_of(s)
    second = plan_of(s)
    assert second.chunks.is_fed.tolist() == [True]
    assert second.token_ids.tolist() == [0]
    assert second.chunks.starts.tolist() == [3]
    third = plan_of(s)
    assert third.chunks.output_indices.tolist() == [2]
    assert s.schedule() is None, "three tokens are all that is allowed"
    outputs = [commit(s, plan, token)[0] for plan, token in ((first, 1), (second, 2), (third, 3))]
    assert [each.token_ids for each in outputs] == [(1,), (2,), (3,)]
    assert outputs[-1].finish_reason is FinishReason.LENGTH
    assert not s.has_work


def test_after_a_commit_the_token_is_known() -> None:
    s = scheduler()
    s.add(request("a", 3))
    run_step(s, token_id=42)
    plan = plan_of(s)
    assert plan.chunks.is_fed.tolist() == [False]
    assert plan.token_ids.tolist() == [42]


def test_an_end_token_ends_the_answer_and_the_step_ahead_is_dropped() -> None:
    s = scheduler(radix_cache=False)
    s.add(request("a", 3))
    first, second = plan_of(s), plan_of(s)
    (output,) = commit(s, first, END)
    assert output.finish_reason is FinishReason.STOP
    assert output.stop_token_id == END
    assert output.token_ids == (END,)
    assert s.stats().num_running == 0
    assert s.stats().num_free_pages < 64, "a step in flight still writes to its pages"
    assert s.has_work
    assert commit(s, second) == []
    assert s.stats().num_free_pages == 64
    assert not s.has_work


def test_end_tokens_do_not_end_before_min_tokens() -> None:
    s = scheduler()
    s.add(request("a", 3, min_tokens=2))
    assert run_step(s, END)[1][0].finish_reason is None
    assert run_step(s, END)[1][0].finish_reason is None
    assert run_step(s, END)[1][0].finish_reason is FinishReason.STOP


def test_the_context_length_ends_an_answer() -> None:
    s = scheduler(context_length=10)
    s.add(request("a", 7, max_tokens=50))
    outputs = [run_step(s)[1][0] for _ in range(3)]
    assert outputs[-1].finish_reason is FinishReason.LENGTH
    assert outputs[-1].num_output_tokens == 3


def test_a_full_cache_ends_the_answer_of_a_request_alone() -> None:
    s = scheduler(num_pages=3, page_size=4)
    s.add(request("a", 7, max_tokens=50))
    outputs = [run_step(s)[1][0] for _ in range(5)]
    assert outputs[-1].finish_reason is FinishReason.LENGTH
    assert not s.has_work


def test_a_prompt_that_can_never_fit_is_refused() -> None:
    s = scheduler(num_pages=3, page_size=4)
    with pytest.raises(PromptTooLong, match="12 tokens"):
        s.add(request("a", 12))
    assert not s.has_work


def test_a_full_queue_refuses() -> None:
    s = scheduler(slots=1, max_queued=1)
    s.add(request("a", 2))
    s.add(request("b", 2))
    with pytest.raises(QueueFull, match="allowed: 1"):
        s.add(request("c", 2))
    run_step(s)
    with pytest.raises(QueueFull):
        s.add(request("c", 2))
    assert s.stats().num_waiting == 1


def test_page_updates_say_what_changed_and_nothing_else() -> None:
    s = scheduler(page_size=2)
    s.add(request("a", 3))
    first, _ = run_step(s)
    assert first.page_updates.indices.tolist() == [0, 1]
    second, _ = run_step(s)
    assert len(second.page_updates) == 0
    third, _ = run_step(s)
    assert third.page_updates.indices.tolist()[0] == 2
    assert set(third.page_updates.page_ids.tolist()).isdisjoint(first.page_updates.page_ids)


def test_cached_tokens_are_not_computed_again() -> None:
    s = scheduler()
    s.add(request("a", 10, max_tokens=1))
    run_step(s)
    s.add(request("b", 10, max_tokens=1))
    plan, (output,) = run_step(s)
    assert plan.chunks.starts.tolist() == [8]
    assert output.num_cached_tokens == 8
    stats = s.stats()
    assert stats.total_prompt_tokens == 20
    assert stats.total_cached_tokens == 8
    assert stats.total_computed_prompt_tokens == 12


def test_prompt_logprobs_need_every_token_and_come_with_the_first_output() -> None:
    s = scheduler(chunk=3)
    s.add(request("a", 5, max_tokens=1))
    run_step(s)
    run_step(s)
    s.add(request("b", 5, max_tokens=2, prompt_logprobs=1, logprobs=0))
    first = plan_of(s)
    assert first.chunks.starts.tolist() == [0]
    assert first.prompt_targets.tolist() == [1001, 1002, 1003]
    rows = fake_logprobs(first.prompt_targets.tolist(), 3, 5000)
    none = np.empty(0, dtype=np.int32)
    assert s.commit(StepResult(step_id=first.step_id, token_ids=none, prompt_logprobs=rows)) == []
    second = plan_of(s)
    assert second.prompt_targets.tolist() == [1004, -1]
    result = StepResult(
        step_id=second.step_id,
        token_ids=np.asarray([TOKEN], dtype=np.int32),
        logprobs=fake_logprobs([TOKEN], 4, 5000),
        prompt_logprobs=fake_logprobs([1004], 3, 5000),
    )
    (output,) = s.commit(result)
    assert output.prompt_logprobs is not None
    assert [each.token_id for each in output.prompt_logprobs] == [1001, 1002, 1003, 1004]
    assert all(len(each.top_token_ids) == 1 for each in output.prompt_logprobs)
    assert output.logprobs is not None
    assert output.logprobs[0].top_token_ids == ()
    assert plan_of(s).prompt_targets.tolist() == []


def test_aborting_a_waiting_request() -> None:
    s = scheduler()
    s.add(request("a", 3))
    output = s.abort("a")
    assert output is not None
    assert output.finish_reason is FinishReason.ABORT
    assert not s.has_work
    assert s.abort("a") is None
    assert s.stats().total_aborted == 1


def test_aborting_a_running_request_waits_for_the_steps_in_flight() -> None:
    s = scheduler(radix_cache=False)
    s.add(request("a", 3))
    first, second = plan_of(s), plan_of(s)
    assert s.abort("a") is not None
    assert commit(s, first) == []
    assert s.stats().num_free_pages < 64
    assert commit(s, second) == []
    assert s.stats().num_free_pages == 64


def test_an_id_may_be_used_again_after_the_end() -> None:
    s = scheduler()
    s.add(request("a", 3))
    plan = plan_of(s)
    s.abort("a")
    s.add(request("a", 5, first=50))
    ahead = plan_of(s)
    assert ahead.chunks.slots.tolist() != plan.chunks.slots.tolist()
    assert commit(s, plan) == []
    assert commit(s, ahead)[0].num_prompt_tokens == 5


def test_a_failed_step_ends_its_requests_and_no_other() -> None:
    s = scheduler(slots=2)
    s.add(request("a", 3, first=10))
    first = plan_of(s)
    s.add(request("b", 3, first=20))
    second = plan_of(s)
    commit(s, first)
    s.add(request("c", 3, first=30))
    outputs = s.fail(second, "it broke")
    s.check()
    assert {each.request_id for each in outputs} == {"a", "b"}
    assert {each.finish_reason for each in outputs} == {FinishReason.ERROR}
    assert outputs[0].error == "it broke"
    assert run_step(s)[1][0].request_id == "c"


def test_what_a_failed_step_computed_is_not_cached() -> None:
    s = scheduler()
    s.add(request("a", 20))
    s.fail(plan_of(s), "it broke")
    assert s.stats().num_cached_pages == 0


def test_the_youngest_makes_room_and_comes_back_with_its_answer() -> None:
    s = scheduler(num_pages=4, page_size=4)
    old, young = request("old", 6, first=10), request("young", 6, first=50)
    s.add(old)
    s.add(young)
    run_step(s)
    run_step(s)
    run_step(s)
    plan, _ = run_step(s)
    assert len(plan.chunks) == 1
    assert s.stats().total_retractions == 1
    assert young.state is RequestState.WAITING
    assert young.output_token_ids == [TOKEN] * 3
    while old.state is not RequestState.FINISHED:
        plan, _ = run_step(s)
        assert len(plan.admissions) == 0
    plan, _ = run_step(s)
    (admission,) = plan.admissions
    assert admission.output_token_ids.tolist() == [TOKEN] * 3
    assert int(plan.chunks.starts[0] + plan.chunks.lengths[0]) == 9
    assert plan.chunks.output_indices.tolist() == [3]
    while s.has_work:
        run_step(s)
    assert young.output_token_ids == [TOKEN] * 8
    assert young.finish_reason is FinishReason.LENGTH
    assert s.stats().total_prompt_tokens == 12


def test_nobody_in_flight_is_retracted() -> None:
    s = scheduler(num_pages=4, page_size=4)
    s.add(request("old", 6, first=10))
    s.add(request("young", 6, first=50))
    plans = [plan_of(s) for _ in range(3)]
    assert s.schedule() is None, "both need a page and both are in flight"
    for plan in plans:
        commit(s, plan)
    assert s.stats().total_retractions == 0
    assert len(plan_of(s).chunks) == 1
    assert s.stats().total_retractions == 1


def test_admission_leaves_room_for_those_who_run() -> None:
    s = scheduler(num_pages=6, page_size=4, headroom_tokens=8)
    s.add(request("a", 8, max_tokens=9, first=10))
    run_step(s)
    s.add(request("b", 8, max_tokens=9, first=50))
    plan, _ = run_step(s)
    assert len(plan.chunks) == 1, "two pages are wanted by each of them"
    while s.has_work:
        run_step(s)
    assert s.stats().total_retractions == 0


def test_a_prefix_in_prefill_is_waited_for() -> None:
    s = scheduler(num_pages=100, chunk=100)
    shared = list(range(40))
    for index in range(3):
        s.add(make_request(f"r{index}", [*shared, 500 + index]))
    first = plan_of(s)
    assert len(first.chunks) == 1
    ahead = s.schedule()
    assert ahead is None, "the others wait and the first has all it wants"
    commit(s, first)
    second, outputs = run_step(s)
    assert second.chunks.starts.tolist() == [40, 40]
    assert [each.num_cached_tokens for each in outputs] == [40, 40]


def test_a_short_prefix_is_not_waited_for() -> None:
    s = scheduler(num_pages=100, chunk=100)
    for index in range(3):
        s.add(make_request(f"r{index}", [*range(28), *range(500 + index, 520 + index)]))
    assert len(plan_of(s).chunks) == 3


def test_without_a_cache_nobody_is_waited_for() -> None:
    s = scheduler(num_pages=100, chunk=200, radix_cache=False)
    for index in range(3):
        s.add(make_request(f"r{index}", [*range(40), 500 + index]))
    assert len(plan_of(s).chunks) == 3


def test_a_waiting_request_goes_on_when_the_one_in_prefill_is_aborted() -> None:
    s = scheduler(num_pages=100, chunk=16)
    for index in range(2):
        s.add(make_request(f"r{index}", [*range(40), 500 + index]))
    first = plan_of(s)
    s.abort("r0")
    second = plan_of(s)
    assert second.chunks.slots.tolist() != first.chunks.slots.tolist()
    commit(s, first)
    commit(s, second)
    while s.has_work:
        run_step(s)
    assert s.stats().total_finished == 2


def test_longest_prefix_goes_first_and_equals_in_order_of_arrival() -> None:
    s = scheduler(slots=1, policy="lpm")
    s.add(request("seed", 20, max_tokens=1))
    run_step(s)
    for name, first in (("none", 10), ("none-too", 50), ("long", 1000)):
        s.add(request(name, 20, max_tokens=1, first=first))
    assert [run_step(s)[1][0].request_id for _ in range(3)] == ["long", "none", "none-too"]


def test_first_come_first_served_whatever_is_cached() -> None:
    s = scheduler(slots=1, policy="fcfs")
    s.add(request("seed", 20, max_tokens=1))
    run_step(s)
    s.add(request("none", 20, max_tokens=1, first=10))
    s.add(request("long", 20, max_tokens=1))
    assert [run_step(s)[1][0].request_id for _ in range(2)] == ["none", "long"]


def test_nobody_is_overtaken_for_ever() -> None:
    s = scheduler(slots=1, policy="lpm", max_queued=10)
    s.add(request("seed", 20, max_tokens=1))
    run_step(s)
    s.add(request("unlucky", 20, max_tokens=1, first=10))
    for index in range(MAX_OVERTAKEN + 2):
        s.add(request(f"lucky{index}", 20, max_tokens=1))
        _, (output,) = run_step(s)
        if output.request_id == "unlucky":
            break
    assert index == MAX_OVERTAKEN


def test_thousands_waiting_cost_little() -> None:
    s = scheduler(num_pages=4000, slots=4, chunk=100, policy="lpm", max_queued=10_000)
    for index in range(5000):
        s.add(request(f"r{index}", 20, max_tokens=2, first=3 * index))
    for _ in range(6):
        run_step(s)
    assert s.stats().total_finished == 12
    assert s.stats().num_waiting > 4900
