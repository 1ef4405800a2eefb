"""What planning costs the host: `python benchmarks/host_costs.py`.

Prints the time of `Scheduler.schedule` and `Scheduler.commit` per step of decoding requests, and of
matching a prompt of 131,072 tokens in a radix tree.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np

from chiplet.config import ScheduleOptions
from chiplet.memory.kv_manager import KvManager
from chiplet.memory.radix_tree import RadixTree, token_key
from chiplet.sampling_params import SamplingParams
from chiplet.scheduler.scheduler import Scheduler
from chiplet.step import StepPlan, StepResult
from chiplet.testing.fake_requests import make_request

NUM_STEPS = 1000
NUM_WARM_STEPS = 5
NUM_LONG_TOKENS = 131_072


def main() -> None:
    print("decoding  waiting  page  schedule us  commit us  steps/minute (medians)")
    for num_running, num_waiting, page_size in (
        (1, 0, 16),
        (8, 0, 16),
        (64, 0, 16),
        (256, 0, 16),
        (256, 0, 1),
        (256, 4000, 16),
    ):
        schedule_s, commit_s = step_costs(num_running, num_waiting, page_size)
        print(
            f"{num_running:8}  {num_waiting:7}  {page_size:4}  {schedule_s * 1e6:11.0f}  "
            f"{commit_s * 1e6:9.0f}  {60 / (schedule_s + commit_s):12.0f}"
        )
    print("\ntokens/node  page  match ms (median)")
    for node_tokens in (128, NUM_LONG_TOKENS):
        for page_size in (1, 16):
            match_s = match_cost(node_tokens, page_size)
            print(f"{node_tokens:11}  {page_size:4}  {match_s * 1e3:8.3f}")


def step_costs(num_running: int, num_waiting: int, page_size: int) -> tuple[float, float]:
    """Median seconds of one `schedule` and one `commit` of decoding requests."""
    kv = KvManager(num_pages=num_running * 2200 // page_size + 4096, page_size=page_size)
    options = ScheduleOptions(
        max_running_requests=num_running,
        max_queued_requests=num_waiting,
        chunked_prefill_size=100_000,
    )
    scheduler = Scheduler(options, kv, context_length=4096)
    random = np.random.default_rng(0)
    sampling = SamplingParams(max_tokens=2 * NUM_STEPS)
    for index in range(num_running + num_waiting):
        scheduler.add(make_request(str(index), random.integers(0, 1000, 20).tolist(), sampling))
    schedule_s: list[float] = []
    commit_s: list[float] = []
    for _ in range(NUM_STEPS):
        start = time.perf_counter()
        plan = scheduler.schedule()
        schedule_s.append(time.perf_counter() - start)
        assert plan is not None
        result = _result(plan)
        start = time.perf_counter()
        scheduler.commit(result)
        commit_s.append(time.perf_counter() - start)
    return (
        statistics.median(schedule_s[NUM_WARM_STEPS:]),
        statistics.median(commit_s[NUM_WARM_STEPS:]),
    )


def match_cost(node_tokens: int, page_size: int) -> float:
    """Median seconds to match a long prompt whose path has nodes of `node_tokens` tokens."""
    tree = RadixTree(page_size)
    tokens = np.random.default_rng(0).integers(0, 50_000, NUM_LONG_TOKENS + 1, dtype=np.int32)
    for end in range(node_tokens, len(tokens), node_tokens):
        branch = np.concatenate([tokens[:end], np.full(page_size, -1, dtype=np.int32)])
        page_ids = np.arange(len(branch) // page_size, dtype=np.int32)
        tree.insert(tree.root, token_key(branch), page_ids)
    key = token_key(tokens)
    assert tree.match_length(key) == NUM_LONG_TOKENS // page_size
    return _median_s(lambda: tree.match(key))


def _result(plan: StepPlan) -> StepResult:
    num_sampled = int(np.count_nonzero(plan.chunks.is_sampled))
    return StepResult(step_id=plan.step_id, token_ids=np.full(num_sampled, 7, dtype=np.int32))


def _median_s(call: Callable[[], object]) -> float:
    durations: list[float] = []
    for _ in range(20):
        start = time.perf_counter()
        call()
        durations.append(time.perf_counter() - start)
    return statistics.median(durations)


if __name__ == "__main__":
    main()
