"""The next plan waits for arrivals while the device is busy, and no longer."""

from __future__ import annotations

import pytest

from chiplet import engine as engine_module
from chiplet.config import ScheduleOptions
from chiplet.engine import Engine
from chiplet.memory.kv_manager import KvManager
from chiplet.sampling_params import SamplingParams
from chiplet.scheduler.pace import Pace
from chiplet.scheduler.scheduler import Scheduler
from chiplet.step import PendingStep, StepPlan, StepResult
from chiplet.testing.fake_requests import make_request
from chiplet.testing.fake_runner import FakeRunner

STEP_S, LAUNCH_S = 0.010, 0.0005


def paced(durations: list[float], *, num_tokens: int = 20) -> Pace:
    """What has seen steps of these durations, one after another, and launched one more at 100."""
    pace, now_s = Pace(), 100.0 - sum(durations)
    pace.launched(num_tokens, start_s=now_s - LAUNCH_S, end_s=now_s)
    for duration in durations:
        pace.launched(num_tokens, start_s=now_s, end_s=now_s + LAUNCH_S)
        now_s += duration
        pace.ended(now_s)
    return pace


def test_nothing_is_known_before_the_first_step_of_a_size_has_ended():
    assert paced([]).spare_s(100.0) == 0
    pace = paced([STEP_S])
    pace.ended(100.01)
    pace.launched(4000, start_s=100.01, end_s=100.02)
    assert pace.spare_s(100.02) == 0


def test_time_is_left_for_the_launch_and_for_a_shorter_step():
    spare_s = paced([STEP_S] * 3).spare_s(100.0)
    assert spare_s == pytest.approx(0.9 * STEP_S - 2 * LAUNCH_S)
    assert paced([STEP_S] * 3).spare_s(100.0 + spare_s) == pytest.approx(0)
    assert paced([STEP_S] * 3).spare_s(101.0) == 0


def test_the_shortest_of_the_last_steps_counts():
    assert paced([0.5, STEP_S, 0.5]).spare_s(100.0) < STEP_S
    assert paced([STEP_S, *[0.5] * 4]).spare_s(100.0) > STEP_S


def test_sizes_close_to_one_another_are_one():
    pace = paced([STEP_S] * 2)
    pace.ended(100 + STEP_S)
    pace.launched(30, start_s=100 + STEP_S, end_s=100 + STEP_S + LAUNCH_S)
    assert pace.spare_s(100 + STEP_S + LAUNCH_S) > 0


def test_no_time_is_left_with_two_steps_in_flight_or_none():
    pace = paced([STEP_S] * 2)
    pace.launched(20, start_s=100.0, end_s=100.001)
    assert pace.spare_s(100.0) == 0
    assert Pace().spare_s(100.0) == 0


class Device:
    """Steps that take STEP_S each on a clock that moves only while somebody waits."""

    def __init__(self, runner: FakeRunner, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s, self.free_s, self.runner = 0.0, 0.0, runner
        monkeypatch.setattr(engine_module.time, "perf_counter", lambda: self.now_s)

    def launch(self, plan: StepPlan) -> TimedStep:
        self.now_s += LAUNCH_S
        self.free_s = max(self.free_s, self.now_s) + STEP_S
        return TimedStep(self, self.runner.launch(plan), self.free_s)


class TimedStep:
    def __init__(self, device: Device, pending: PendingStep, end_s: float) -> None:
        self.device, self.pending, self.end_s = device, pending, end_s

    def is_done(self) -> bool:
        return self.device.now_s >= self.end_s

    def wait(self) -> StepResult:
        self.device.now_s = max(self.device.now_s, self.end_s)
        return self.pending.wait()


def started(
    monkeypatch: pytest.MonkeyPatch, *, slots: int = 4, is_host_free: bool = True
) -> tuple[Engine, Device]:
    kv = KvManager(num_pages=64, page_size=16, radix_cache=True)
    options = ScheduleOptions(max_running_requests=slots)
    device = Device(
        FakeRunner(num_pages=64, page_size=16, num_slots=slots, vocab_size=1009), monkeypatch
    )
    scheduler = Scheduler(options, kv, context_length=1024)
    engine = Engine(scheduler, device, is_host_free=is_host_free)
    engine.add(make_request("first", [1, 2, 3], SamplingParams(max_tokens=100)))
    for _ in range(4):
        engine.step()
    return engine, device


def test_who_comes_while_the_plan_waits_takes_part_in_the_next_step(monkeypatch):
    engine, device = started(monkeypatch)
    spare_s = engine.spare_s()
    assert 0 < spare_s < STEP_S
    device.now_s += spare_s
    engine.add(make_request("second", [4, 5, 6], SamplingParams(max_tokens=100)))
    assert engine.spare_s() == 0, "who waits for a slot is not kept waiting"
    assert device.now_s < device.free_s, "the device is still busy"
    engine.step()
    assert any(each.request_id == "second" for each in engine.step())


def test_the_plan_waits_for_nobody_when_no_slot_is_free_or_the_device_is(monkeypatch):
    engine, _ = started(monkeypatch, slots=1)
    assert engine.spare_s() == 0
    engine, device = started(monkeypatch)
    assert engine.spare_s() > 0
    device.now_s = device.free_s
    assert engine.spare_s() == 0


def test_an_output_is_not_kept_waiting(monkeypatch):
    engine, _ = started(monkeypatch)
    engine.abort("first")
    assert engine.spare_s() == 0


def test_no_plan_waits_where_this_process_computes_the_steps(monkeypatch):
    engine, _ = started(monkeypatch, is_host_free=False)
    assert engine.spare_s() == 0
