"""A seeded simulation: random traffic over a tiny cache, checked after every step.

FakeRunner's tokens depend on every page a request reads, so an answer that equals the expected
one proves that no page was lost, shared by mistake or used twice.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field

import pytest

from chiplet.config import ScheduleOptions
from chiplet.engine import Engine
from chiplet.memory.kv_manager import KvManager
from chiplet.request import FinishReason, Request, RequestOutput
from chiplet.sampling_params import SamplingParams
from chiplet.scheduler.scheduler import Scheduler
from chiplet.scheduler.stats import SchedulerStats
from chiplet.testing.fake_requests import make_request
from chiplet.testing.fake_runner import FakeRunner, expected_answer

VOCAB_SIZE = 211
END_TOKEN_IDS = (3, 5)
CONTEXT_LENGTH = 120
NUM_SLOTS = 6
MAX_ALIVE = 14


@dataclass(frozen=True)
class Setting:
    page_size: int
    policy: str
    radix_cache: bool
    latency: int

    def __str__(self) -> str:
        cache = "radix" if self.radix_cache else "plain"
        return f"page{self.page_size}-{self.policy}-{cache}-latency{self.latency}"


SETTINGS = [
    Setting(*each) for each in itertools.product((1, 16), ("fcfs", "lpm"), (True, False), (0, 1, 3))
]


@dataclass
class Simulation:
    setting: Setting
    seed: int
    alive: dict[str, Request] = field(default_factory=dict)
    answers: dict[str, list[int]] = field(default_factory=dict)
    aborted: set[str] = field(default_factory=set)
    num_finished: int = 0

    def __post_init__(self) -> None:
        self.random = random.Random(f"{self.setting} {self.seed}")
        options = ScheduleOptions(
            schedule_policy=self.setting.policy,
            max_running_requests=NUM_SLOTS,
            chunked_prefill_size=self.random.choice([1, 7, 16, 50]),
            mixed_prefill_size=self.random.choice([None, 4, 16]),
        )
        # Enough for two or three requests of middling length, not always for the longest.
        num_pages = self.random.choice([100, 160, 220]) // self.setting.page_size
        self.context_length = min(CONTEXT_LENGTH, num_pages * self.setting.page_size)
        self.kv = KvManager(
            num_pages=num_pages,
            page_size=self.setting.page_size,
            radix_cache=self.setting.radix_cache,
        )
        self.scheduler = Scheduler(
            options,
            self.kv,
            context_length=CONTEXT_LENGTH,
            headroom_tokens=self.random.choice([0, 0, 8]),
        )
        runner = FakeRunner(
            num_pages=num_pages,
            page_size=self.setting.page_size,
            num_slots=NUM_SLOTS,
            vocab_size=VOCAB_SIZE,
            latency=self.setting.latency,
        )
        self.engine = Engine(self.scheduler, runner)
        self.prefixes = [self.tokens(self.random.randint(1, 60)) for _ in range(4)]
        self.numbers = itertools.count()

    def tokens(self, count: int) -> list[int]:
        return [self.random.randrange(VOCAB_SIZE) for _ in range(count)]

    def run(self, num_steps: int) -> SchedulerStats:
        for _ in range(num_steps):
            self.arrive()
            if self.alive and self.random.random() < 0.03:
                request_id = self.random.choice(list(self.alive))
                self.engine.abort(request_id)
                self.aborted.add(request_id)
            self.step()
        for _ in range(50 * MAX_ALIVE * CONTEXT_LENGTH):
            if not self.engine.has_work:
                break
            self.step()
        return self.engine.stats()

    def arrive(self) -> None:
        # Traffic comes in waves, so that the cache is sometimes full and sometimes idle.
        wave = self.random.random() < 0.15
        for _ in range(self.random.randint(1, 4) if wave else 0):
            if len(self.alive) >= MAX_ALIVE:
                return
            request = self.request()
            self.engine.add(request)
            self.alive[request.request_id] = request
            self.answers[request.request_id] = []

    def request(self) -> Request:
        prefix = self.random.choice(self.prefixes)
        prompt = (
            prefix[: self.random.randint(0, len(prefix))] if self.random.random() < 0.3 else prefix
        )
        prompt = (prompt + self.tokens(self.random.randint(1, 12)))[: self.context_length - 1]
        max_tokens = self.random.choice([1, 2, 10, 40, 100])
        wants_logprobs = self.random.random() < 0.1
        return make_request(
            f"r{next(self.numbers)}",
            prompt,
            SamplingParams(
                max_tokens=max_tokens,
                min_tokens=self.random.choice([0, 0, 1, max_tokens]),
                logprobs=2 if wants_logprobs else None,
                prompt_logprobs=self.random.choice([0, 1, None]) if wants_logprobs else None,
            ),
            end_token_ids=END_TOKEN_IDS,
        )

    def step(self) -> None:
        for output in self.engine.step():
            self.take(output)
        self.scheduler.check()

    def take(self, output: RequestOutput) -> None:
        request = self.alive[output.request_id]
        answer = self.answers[output.request_id]
        is_first = not answer
        answer += output.token_ids
        assert output.num_output_tokens == len(answer)
        if output.finish_reason is not FinishReason.ABORT:
            self.check_logprobs(request, output, is_first)
        if output.finish_reason is not None:
            self.end(request, output)

    def check_logprobs(self, request: Request, output: RequestOutput, is_first: bool) -> None:
        if request.sampling.logprobs is not None:
            assert output.logprobs is not None
            assert [each.token_id for each in output.logprobs] == list(output.token_ids)
            assert len(output.logprobs[0].top_token_ids) == request.sampling.logprobs
        if request.sampling.prompt_logprobs is not None and is_first:
            assert output.prompt_logprobs is not None
            scored = [each.token_id for each in output.prompt_logprobs]
            assert scored == request.prompt_token_ids.tolist()[1:]
        else:
            assert output.prompt_logprobs is None

    def end(self, request: Request, output: RequestOutput) -> None:
        del self.alive[request.request_id]
        self.num_finished += 1
        answer = self.answers.pop(request.request_id)
        expected = expected_answer(request, VOCAB_SIZE, self.context_length)
        if output.finish_reason is FinishReason.ABORT:
            assert request.request_id in self.aborted
            assert answer == expected[: len(answer)]
            return
        assert answer == expected
        is_stop = answer[-1] in END_TOKEN_IDS and len(answer) > request.sampling.min_tokens
        assert output.finish_reason is (FinishReason.STOP if is_stop else FinishReason.LENGTH)
        assert output.stop_token_id == (answer[-1] if is_stop else None)


def check_simulation(setting: Setting, num_steps: int, seed: int) -> SchedulerStats:
    simulation = Simulation(setting, seed)
    stats = simulation.run(num_steps)
    assert not simulation.engine.has_work, "requests never ended"
    assert not simulation.alive
    assert stats.num_free_pages + stats.num_cached_pages == stats.num_total_pages
    assert stats.total_finished == simulation.num_finished
    assert stats.total_prompt_tokens >= stats.total_cached_tokens
    return stats


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_random_traffic(setting: Setting) -> None:
    runs = [check_simulation(setting, 210, seed) for seed in range(4)]
    assert sum(stats.total_retractions for stats in runs) > 0
    assert sum(stats.total_finished for stats in runs) > 50
    if setting.radix_cache:
        assert sum(stats.total_evicted_pages for stats in runs) > 0
        assert sum(stats.total_cached_tokens for stats in runs) > 0
    else:
        assert sum(stats.total_cached_tokens for stats in runs) == 0


@pytest.mark.slow
def test_a_hundred_thousand_random_steps() -> None:
    for index, setting in enumerate(SETTINGS * 10):
        check_simulation(setting, 420, seed=1000 + index)
