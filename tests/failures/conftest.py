from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from chiplet.plugins import discovery
from tests.failures.faulty import Faulty
from tests.models.tiny import make_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    make_checkpoint("llama-tied", folder)
    return folder


@pytest.fixture
def faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faulty]:
    """The faulty plugins, and no others installed."""
    plugins = Faulty(tmp_path)
    monkeypatch.setattr(
        discovery, "distributions", lambda: importlib.metadata.distributions(path=[str(tmp_path)])
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield plugins
    for name in [name for name in sys.modules if name.startswith(("test_faulty", "test_brittle"))]:
        del sys.modules[name]
