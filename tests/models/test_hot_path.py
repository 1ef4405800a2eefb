"""Hooks are for start-up: a decode step calls none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pluggy
import pytest

from chiplet.config import EngineConfig
from chiplet.sampling_params import SamplingParams
from chiplet.worker import start
from tests.models.tiny import make_checkpoint


def test_a_hundred_decode_steps_call_no_hook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    execute: Callable[..., Any] = pluggy.PluginManager._hookexec

    def count(self: pluggy.PluginManager, name: str, *rest: Any) -> Any:
        called.append(name)
        return execute(self, name, *rest)

    # Every call of every hook goes through here.
    monkeypatch.setattr(pluggy.PluginManager, "_hookexec", count)
    make_checkpoint("llama-tied", tmp_path)
    config = EngineConfig.from_options(
        model=str(tmp_path), device="cpu", dtype="float32", max_total_tokens=4096
    )
    engine, facts = start(config)
    assert {"platform", "attention", "linear", "ops"} <= set(called)
    called.clear()
    sampling = SamplingParams(temperature=0.7, top_p=0.9, max_tokens=101, ignore_eos=True)
    for index in range(3):
        prompt = np.full(5, index + 2, dtype=np.int32)
        engine.add(facts.limits.request(f"r{index}", prompt, sampling, seed=0, arrival_s=0.0))
    num_steps = 0
    while engine.has_work:
        engine.step()
        num_steps += 1
    assert num_steps >= 100
    assert called == []
