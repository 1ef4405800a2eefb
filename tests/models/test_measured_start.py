"""Autotune with real implementations: measured once, remembered, and shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from chiplet.config import EngineConfig
from chiplet.plugins import render
from chiplet.plugins.autotune.measure import DeviceStopwatch
from chiplet.worker import explain
from tests.models.tiny import make_checkpoint


def test_a_second_start_measures_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_checkpoint("mistral-window", tmp_path / "model")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = EngineConfig.from_options(
        model=str(tmp_path / "model"), device="cpu", dtype="float32", autotune="fast"
    )
    first = explain(config)
    measured = {each.operation: each for each in first.choices if each.basis == "measured"}
    # Where torch has no oneDNN and the plugin no kernels, one candidate is left.
    for choice in measured.values():
        assert choice.operation.startswith(("linear/", "attention/"))
        assert choice.timings_us
        assert all(
            set(times) == {1, 64} and min(times.values()) > 0
            for times in choice.timings_us.values()
        )
    assert measured, render(first)
    assert "us by tokens" in render(first)
    (_,) = (tmp_path / "cache" / "chiplet" / "autotune").glob("*.json")

    def refuse(*arguments: object) -> float:
        raise AssertionError("measured again")

    monkeypatch.setattr(DeviceStopwatch, "measure", refuse)
    second = explain(config)
    assert second.hash == first.hash
    assert {each.operation for each in second.choices if each.basis == "measured"} == set(measured)
    assert {each.basis for each in explain(config.replacing("device.autotune", "off")).choices} == {
        "score"
    }
