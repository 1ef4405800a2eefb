"""Engine: one step ahead of the device, and sound when the device is not."""

from __future__ import annotations

import logging

import pytest

from chiplet.config import ScheduleOptions
from chiplet.engine import Engine
from chiplet.errors import EngineError, PromptTooLong
from chiplet.memory.kv_manager import KvManager
from chiplet.request import FinishReason, Request, RequestOutput
from chiplet.sampling_params import SamplingParams
from chiplet.scheduler.scheduler import Scheduler
from chiplet.testing.fake_requests import make_request
from chiplet.testing.fake_runner import FakeRunner, expected_answer

VOCAB_SIZE = 1009
CONTEXT_LENGTH = 2048


class Bench:
    """An engine over a FakeRunner, with its answers collected."""

    def __init__(
        self,
        *,
        latency: int = 0,
        num_pages: int = 256,
        page_size: int = 16,
        slots: int = 32,
        chunk: int = 512,
        policy: str = "lpm",
        radix_cache: bool = True,
    ) -> None:
        options = ScheduleOptions(
            schedule_policy=policy, max_running_requests=slots, chunked_prefill_size=chunk
        )
        kv = KvManager(num_pages=num_pages, page_size=page_size, radix_cache=radix_cache)
        self.scheduler = Scheduler(options, kv, context_length=CONTEXT_LENGTH)
        self.runner = FakeRunner(
            num_pages=num_pages,
            page_size=page_size,
            num_slots=slots,
            vocab_size=VOCAB_SIZE,
            latency=latency,
        )
        self.engine = Engine(self.scheduler, self.runner)
        self.outputs: dict[str, list[RequestOutput]] = {}

    def add(self, name: str, prompt: list[int], max_tokens: int = 5) -> Request:
        request = make_request(name, prompt, SamplingParams(max_tokens=max_tokens))
        self.engine.add(request)
        self.outputs[name] = []
        return request

    def step(self) -> list[RequestOutput]:
        outputs = self.engine.step()
        self.scheduler.check()
        for output in outputs:
            self.outputs[output.request_id].append(output)
        return outputs

    def run(self) -> None:
        for _ in range(10_000):
            if not self.engine.has_work:
                return
            self.step()
        raise AssertionError("requests never ended")

    def answer(self, name: str) -> list[int]:
        return [token for output in self.outputs[name] for token in output.token_ids]

    def reason(self, name: str) -> FinishReason | None:
        return self.outputs[name][-1].finish_reason


def expected(request: Request) -> list[int]:
    return expected_answer(request, VOCAB_SIZE, CONTEXT_LENGTH)


@pytest.mark.parametrize("latency", [0, 1, 5])
def test_an_answer_is_as_expected(latency: int) -> None:
    bench = Bench(latency=latency)
    request = bench.add("a", [1, 2, 3], max_tokens=50)
    bench.run()
    assert bench.answer("a") == expected(request)
    assert bench.reason("a") is FinishReason.LENGTH


def test_a_synchronous_device_holds_no_token_back() -> None:
    bench = Bench(latency=0)
    bench.add("a", [1, 2, 3], max_tokens=4)
    assert [len(bench.step()) for _ in range(4)] == [1, 1, 1, 1]
    assert not bench.engine.has_work


def test_the_next_step_is_launched_before_the_last_is_awaited() -> None:
    bench = Bench(latency=100)
    bench.add("a", [1, 2, 3], max_tokens=4)
    launched = []
    for _ in range(5):
        num_tokens = len(bench.step())
        launched.append((bench.runner.num_launched, num_tokens))
    # The first call launches only; the last one finds nothing to launch and waits.
    assert launched == [(1, 0), (2, 1), (3, 1), (4, 1), (4, 1)]


@pytest.mark.parametrize("latency", [0, 1])
@pytest.mark.parametrize("policy", ["fcfs", "lpm"])
def test_a_prefix_shared_by_32_requests_is_computed_once(latency: int, policy: str) -> None:
    bench = Bench(latency=latency, policy=policy, slots=32, num_pages=300)
    prefix = [(7 * i) % VOCAB_SIZE for i in range(1024)]
    requests = [bench.add(f"r{i}", [*prefix, i, i + 1]) for i in range(32)]
    bench.run()
    assert all(bench.answer(each.request_id) == expected(each) for each in requests)
    stats = bench.engine.stats()
    assert stats.total_computed_prompt_tokens == 1024 + 32 * 2
    assert stats.total_cached_tokens == 31 * 1024


def test_an_abort_ends_a_request_and_leaves_the_others_alone() -> None:
    bench = Bench(latency=1)
    bench.add("a", [1, 2, 3], max_tokens=50)
    other = bench.add("b", [4, 5, 6], max_tokens=20)
    for _ in range(4):
        bench.step()
    bench.engine.abort("a")
    bench.engine.abort("never heard of")
    num_tokens = len(bench.answer("a"))
    bench.run()
    assert bench.reason("a") is FinishReason.ABORT
    assert len(bench.answer("a")) == num_tokens
    assert bench.answer("b") == expected(other)
    stats = bench.engine.stats()
    assert stats.num_free_pages + stats.num_cached_pages == stats.num_total_pages


def test_the_last_output_of_an_aborted_request_is_delivered_though_nothing_runs() -> None:
    bench = Bench()
    bench.add("a", [1])
    bench.engine.abort("a")
    assert bench.engine.has_work
    assert [each.finish_reason for each in bench.step()] == [FinishReason.ABORT]
    assert not bench.engine.has_work


def test_a_hopeless_request_is_refused_at_once() -> None:
    bench = Bench(num_pages=2)
    with pytest.raises(PromptTooLong):
        bench.engine.add(make_request("a", range(40)))
    assert not bench.engine.has_work


@pytest.mark.parametrize("latency", [0, 1])
@pytest.mark.parametrize("where", ["launch", "wait"])
def test_a_failed_step_ends_its_requests_and_the_engine_goes_on(
    latency: int, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(latency=latency)
    bench.runner.fail(**{"launches" if where == "launch" else "steps": [2]})
    bench.add("a", [1, 2, 3], max_tokens=20)
    with caplog.at_level(logging.CRITICAL):
        bench.run()
    assert bench.reason("a") is FinishReason.ERROR
    assert "failed as it was told to" in (bench.outputs["a"][-1].error or "")
    request = bench.add("b", [1, 2, 3], max_tokens=20)
    bench.run()
    assert bench.answer("b") == expected(request)


@pytest.mark.parametrize("latency", [0, 1])
@pytest.mark.parametrize("where", ["launches", "steps"])
def test_an_interrupted_step_leaves_a_sound_engine(latency: int, where: str) -> None:
    bench = Bench(latency=latency)
    bench.runner.fail(**{where: [2]}, error=KeyboardInterrupt)
    bench.add("a", [1, 2, 3], max_tokens=20)
    with pytest.raises(KeyboardInterrupt):
        bench.run()
    bench.scheduler.check()
    request = bench.add("b", [1, 2, 3], max_tokens=20)
    bench.run()
    assert bench.reason("a") is FinishReason.ERROR
    assert bench.answer("b") == expected(request)


@pytest.mark.parametrize("latency", [0, 1])
def test_a_device_fault_ends_the_engine_once_its_outputs_are_out(
    latency: int, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(latency=latency)
    bench.runner.fail(steps=[2], error=EngineError)
    bench.add("a", [1, 2, 3], max_tokens=20)
    with caplog.at_level(logging.CRITICAL), pytest.raises(EngineError, match="as it was told"):
        bench.run()
    assert bench.reason("a") is FinishReason.ERROR
    assert bench.engine.has_work, "whoever asks learns of the fault again"
    with pytest.raises(EngineError, match="as it was told"):
        bench.engine.step()


def test_a_failed_step_leaves_requests_of_other_steps_alone() -> None:
    bench = Bench(latency=1, chunk=4)
    bench.add("a", [1, 2, 3, 4], max_tokens=1)
    other = bench.add("b", [9, 8, 7, 6], max_tokens=6)
    bench.runner.fail(steps=[0])
    bench.run()
    assert bench.reason("a") is FinishReason.ERROR
    assert bench.answer("b") == expected(other)


@pytest.mark.parametrize("latency", [0, 1])
@pytest.mark.parametrize("page_size", [1, 16])
def test_many_long_answers_in_a_cache_for_one_come_out_right(latency: int, page_size: int) -> None:
    bench = Bench(latency=latency, page_size=page_size, num_pages=160 // page_size, slots=8)
    requests = [bench.add(f"r{i}", [i] * (i + 1), max_tokens=140) for i in range(8)]
    bench.run()
    assert all(bench.answer(each.request_id) == expected(each) for each in requests)
    assert bench.engine.stats().total_retractions > 0
