"""The overlapped loop with the real runner gives what the synchronous one gives."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from chiplet.config import EngineConfig
from chiplet.runner.runner import LaunchedStep
from chiplet.sampling_params import SamplingParams
from chiplet.scheduler.scheduler import Scheduler
from chiplet.worker import start
from tests.models.tiny import VOCAB_SIZE, Collected, make_checkpoint, run_engine

KINDS_OF_SAMPLING = [
    SamplingParams(temperature=0, max_tokens=20),
    SamplingParams(temperature=1.0, seed=3, max_tokens=25, logprobs=3),
    SamplingParams(temperature=0.8, top_k=8, top_p=0.9, seed=4, max_tokens=18),
    SamplingParams(temperature=0, frequency_penalty=1.5, presence_penalty=0.5, max_tokens=22),
    SamplingParams(temperature=1.0, seed=5, repetition_penalty=1.4, min_tokens=9, max_tokens=24),
    SamplingParams(temperature=0, prompt_logprobs=2, ignore_eos=True, max_tokens=12),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    make_checkpoint("llama-tied", folder)
    return folder


def _run(folder: Path, **options: object) -> list[Collected]:
    rng = np.random.default_rng(0)
    prompts = [rng.integers(2, VOCAB_SIZE, size).tolist() for size in rng.integers(1, 40, 18)]
    defaults = {"model": str(folder), "dtype": "float32", "max_running_requests": 5}
    config = EngineConfig.from_options(device="cpu", **(defaults | options))
    return run_engine(config, prompts, KINDS_OF_SAMPLING * 3)


def _assert_same(got: Sequence[Collected], expected: Sequence[Collected]) -> None:
    for one, other in zip(got, expected, strict=True):
        assert one.token_ids == other.token_ids
        for name in ("logprobs", "prompt_logprobs"):
            ours = [each.logprob for out in one.outputs for each in getattr(out, name) or ()]
            theirs = [each.logprob for out in other.outputs for each in getattr(out, name) or ()]
            np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"page_size": 16, "chunked_prefill_size": 512},
        {"page_size": 1, "chunked_prefill_size": 7},
        {"page_size": 4, "chunked_prefill_size": 5, "radix_cache": False},
        # So few pages, with nothing held back, that requests are retracted and computed again.
        {"page_size": 4, "chunked_prefill_size": 64, "max_total_tokens": 96},
    ],
)
def test_one_step_ahead_equals_step_by_step(
    folder: Path, options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = _run(folder, max_total_tokens=4096)
    defaults = {"max_total_tokens": 4096}
    _assert_same(_run(folder, **(defaults | options)), expected)
    monkeypatch.setattr("chiplet.worker.Scheduler", partial(Scheduler, headroom_tokens=0))
    _assert_same(_run(folder, **(defaults | options)), expected)
    monkeypatch.setattr(LaunchedStep, "is_done", lambda self: False)
    _assert_same(_run(folder, **(defaults | options)), expected)


def test_few_pages_do_lead_to_retractions(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chiplet.worker.Scheduler", partial(Scheduler, headroom_tokens=0))
    config = EngineConfig.from_options(
        model=str(folder), device="cpu", dtype="float32", page_size=4, max_total_tokens=96
    )
    engine, facts = start(config)
    sampling = SamplingParams(temperature=0, ignore_eos=True, max_tokens=40)
    for index in range(4):
        prompt = np.full(8, index + 2, dtype=np.int32)
        engine.add(facts.limits.request(f"r{index}", prompt, sampling, seed=0, arrival_s=0.0))
    while engine.has_work:
        engine.step()
    assert engine.stats().total_retractions > 0
    assert engine.stats().total_output_tokens == 160
