"""What a step may cost: no hook is called, and many requests are no more operations than few."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pluggy
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from chiplet.config import EngineConfig
from chiplet.engine import Engine
from chiplet.sampling_params import SamplingParams
from chiplet.worker import EngineFacts, start
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


class _Counting(TorchDispatchMode):
    """Counts operations of torch, among them the results that kernels ask memory for."""

    def __init__(self) -> None:
        super().__init__()
        self.num_operations = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """One operation."""
        self.num_operations += 1
        return func(*args, **(kwargs or {}))


def _add(engine: Engine, facts: EngineFacts, name: str, prompt: np.ndarray) -> None:
    sampling = SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True)
    engine.add(facts.limits.request(name, prompt, sampling, seed=0, arrival_s=0.0))


def _operations_of_shared_prefix(folder: Path, num_requests: int) -> int:
    """Operations of the one step that computes the ends of prompts whose beginning is cached."""
    config = EngineConfig.from_options(
        model=str(folder),
        device="cpu",
        dtype="float32",
        max_total_tokens=4096,
        context_length=256,
        eager=True,
    )
    engine, facts = start(config)
    rng = np.random.default_rng(num_requests)
    prefix = rng.integers(2, 32, 64).astype(np.int32)
    _add(engine, facts, "first", np.append(prefix, np.int32(2)))
    while engine.has_work:
        engine.step()
    for index in range(num_requests):
        end = rng.integers(2, 32, 5 + index).astype(np.int32)
        _add(engine, facts, f"r{index}", np.concatenate([prefix, end]))
    counting, before = _Counting(), engine.stats()
    with counting:
        engine.step()
    after = engine.stats()
    assert after.total_cached_tokens - before.total_cached_tokens == 64 * num_requests
    assert after.total_steps == before.total_steps + 1
    assert after.num_waiting == 0
    return counting.num_operations


def test_many_prompts_behind_one_prefix_take_no_more_operations_than_few(tmp_path: Path) -> None:
    # Where attention went from request to request, 32 of them took 2,000 operations a step; each
    # waits for the slowest thread, on a busy machine for longer than it computes.
    # Fewer tokens than these may run as stretches, in fewer operations.
    make_checkpoint("qwen3", tmp_path)
    few, many = (_operations_of_shared_prefix(tmp_path, count) for count in (12, 24))
    assert few > 0
    assert many == few


class _ProductRows(TorchDispatchMode):
    """Rows of every product with weights, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """One operation."""
        if func in (torch.ops.aten.linear.default, torch.ops.aten.mm.default):
            self.rows.append(len(args[0]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["llama-untied", "deepseek"])
def test_the_last_layer_goes_on_with_tokens_whose_logits_are_wanted(
    kind: str, tmp_path: Path
) -> None:
    make_checkpoint(kind, tmp_path)
    config = EngineConfig.from_options(
        model=str(tmp_path), device="reference", dtype="float32", max_total_tokens=4096
    )
    engine, facts = start(config)
    for name in ("a", "b"):
        _add(engine, facts, name, np.arange(2, 22, dtype=np.int32))
    seen = _ProductRows()
    with seen:
        engine.step()
    before, after = seen.rows.count(40), seen.rows.count(2)
    assert before + after == len(seen.rows)
    # The last layer's output projection, gate and up, down, and the head; more with experts.
    assert seen.rows[-4:] == [2, 2, 2, 2]
    assert before > after >= 4
