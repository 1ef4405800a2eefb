"""Without a plugin the work is done by the reference platform, and everybody is told."""

from __future__ import annotations

import logging
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from chiplet.config import EngineConfig
from chiplet.worker import start
from tests.models.tiny import make_checkpoint


def test_the_reference_platform_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_checkpoint("llama-tied", tmp_path)
    config = EngineConfig.from_options(
        model=str(tmp_path), no_plugin=_installed_plugins(), max_total_tokens=256
    )
    with caplog.at_level(logging.WARNING):
        _, facts = start(config)
    assert facts.device.startswith("reference:0")
    warnings = [each.getMessage() for each in caplog.records if each.name == "chiplet.worker"]
    assert len(warnings) == 1
    assert warnings[0] in facts.banner
    assert "reference" in warnings[0]


def _installed_plugins() -> tuple[str, ...]:
    """Every distribution with a plugin in this environment, but core itself."""
    found = {each.dist.name for each in entry_points(group="chiplet.plugins") if each.dist}
    return tuple(sorted(found - {"chiplet"}))
