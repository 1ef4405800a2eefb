"""A step raises: its requests fail, the implementation to blame is replaced, others go on."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import numpy as np
import pytest

from chiplet.config import EngineConfig
from chiplet.engine import Engine
from chiplet.errors import EngineError
from chiplet.request import FinishReason, RequestOutput
from chiplet.sampling_params import SamplingParams
from chiplet.worker import EngineFacts, start
from tests.failures.faulty import Faulty

PREFIX = list(range(2, 22))


class Bench:
    """A real engine on the tiny model."""

    def __init__(self, checkpoint: Path, **options: object) -> None:
        config = EngineConfig.from_options(
            model=str(checkpoint),
            dtype="float32",
            page_size=4,
            max_total_tokens=512,
            context_length=128,
            **({"device": "reference", "max_running_requests": 2} | options),
        )
        self.engine: Engine
        self.facts: EngineFacts
        self.engine, self.facts = start(config)
        self.outputs: dict[str, list[RequestOutput]] = {}

    def add(self, name: str, prompt: list[int], num_tokens: int = 6) -> None:
        params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
        array = np.array(prompt, dtype=np.int32)
        limits = self.facts.limits
        self.engine.add(limits.request(name, array, params, seed=0, arrival_s=time.monotonic()))
        self.outputs[name] = []

    def step(self) -> None:
        for output in self.engine.step():
            self.outputs[output.request_id].append(output)

    def run(self) -> None:
        while self.engine.has_work:
            self.step()

    def answer(self, name: str) -> list[int]:
        assert self.outputs[name][-1].finish_reason is FinishReason.LENGTH, self.outputs[name]
        return [token for output in self.outputs[name] for token in output.token_ids]

    def error(self, name: str) -> str:
        assert self.outputs[name][-1].finish_reason is FinishReason.ERROR
        return self.outputs[name][-1].error or ""


def providers(plan: dict[str, object], family: str) -> set[str]:
    choices: list[dict[str, str]] = plan["choices"]  # type: ignore[assignment]
    return {each["provider"] for each in choices if each["operation"].startswith(family)}


@pytest.fixture
def expected(checkpoint: Path) -> dict[str, list[int]]:
    """Answers of the reference alone."""
    bench = Bench(checkpoint, no_plugin=())
    for name in ("shared", "running", "waiting"):
        bench.add(name, [*PREFIX, len(name)])
        bench.run()
    return {name: bench.answer(name) for name in bench.outputs}


@pytest.mark.parametrize(
    ("part", "operation"),
    [("attention", "attention/global"), ("linear", "linear/gate_up_proj"), ("ops", "ops/rms_norm")],
)
def test_a_failing_implementation_is_replaced_and_pages_stay(
    part: str,
    operation: str,
    checkpoint: Path,
    expected: dict[str, list[int]],
    faulty: Faulty,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench(checkpoint, max_running_requests=1)
    assert providers(bench.facts.plan, operation) == {"faulty"}
    bench.add("shared", [*PREFIX, 6])
    bench.run()
    bench.add("running", [*PREFIX, 7], num_tokens=50)
    bench.add("waiting", [*PREFIX, 7])
    bench.step()
    bench.step()
    faulty.order(part)
    with caplog.at_level(logging.CRITICAL):
        bench.run()
    assert bench.answer("shared") == expected["shared"]
    assert bench.error("running") == f"RuntimeError: {part} was told"
    assert bench.answer("waiting") == expected["waiting"]
    assert bench.outputs["waiting"][0].num_cached_tokens >= len(PREFIX), "pages are still good"
    (news,) = bench.engine.take_news()
    assert f"{operation}: provider faulty raised RuntimeError" in news.message
    (demoted, *_) = (each for each in news.plan["choices"] if each["operation"] == operation)
    assert demoted["provider"] != "faulty"
    assert demoted["num_uses"] > 0
    (reason,) = [each for each in demoted["rejections"] if each["provider"] == "faulty"]
    assert "raised RuntimeError" in reason["reasons"][0]
    assert not bench.engine.take_news(), "news are told once"


def test_what_is_not_the_implementations_fault_demotes_nobody(
    checkpoint: Path, faulty: Faulty, expected: dict[str, list[int]]
) -> None:
    bench = Bench(checkpoint)
    faulty.order("memory", "attention")
    bench.add("running", [*PREFIX, 7])
    bench.run()
    assert "MemoryError" in bench.error("running")
    faulty.forgive()
    bench.add("waiting", [*PREFIX, 7])
    bench.run()
    assert bench.answer("waiting") == expected["waiting"]
    assert not bench.engine.take_news()


def test_an_implementation_that_leaves_is_demoted_and_the_engine_stays(
    checkpoint: Path, faulty: Faulty, expected: dict[str, list[int]]
) -> None:
    bench = Bench(checkpoint)
    faulty.order("leave", "attention")
    bench.add("running", [*PREFIX, 7])
    bench.run()
    assert "SystemExit: attention was told" in bench.error("running")
    (news,) = bench.engine.take_news()
    assert "attention/global: provider faulty raised RuntimeError: SystemExit" in news.message
    bench.add("waiting", [*PREFIX, 7])
    bench.run()
    assert bench.answer("waiting") == expected["waiting"]


def test_a_pinned_implementation_stays_and_its_batches_fail(
    checkpoint: Path, faulty: Faulty, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(checkpoint, use=("attention=faulty",))
    faulty.order("attention")
    for name in ("first", "second"):
        bench.add(name, PREFIX)
        bench.run()
        assert "attention was told" in bench.error(name)
    assert not bench.engine.take_news()
    assert "pinned to 'faulty'" in caplog.text
    faulty.forgive()
    bench.add("third", PREFIX)
    bench.run()
    assert len(bench.answer("third")) == 6


def test_a_fault_of_the_device_ends_the_engine_and_names_who_is_to_blame(
    checkpoint: Path, faulty: Faulty
) -> None:
    bench = Bench(checkpoint, device="brittle")
    faulty.order("attention", "device")
    bench.add("running", PREFIX)
    with pytest.raises(EngineError, match="the device is lost") as caught:
        bench.run()
    assert "attention was told" in bench.error("running")
    assert caught.value.deny == ("attention/global=faulty",)


def test_a_fault_that_comes_later_blames_nobody(checkpoint: Path, faulty: Faulty) -> None:
    bench = Bench(checkpoint, device="brittle")
    faulty.order("device")
    bench.add("running", PREFIX)
    with pytest.raises(EngineError, match="the device is lost") as caught:
        bench.run()
    assert caught.value.deny == ()
