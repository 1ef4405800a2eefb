from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.server_process import (
    ServerProcess,
    engine_config,
    running_server,
    write_byte_tokenizer,
)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but a tokenizer of bytes."""
    folder = tmp_path_factory.mktemp("model")
    write_byte_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def server(model_folder: Path) -> Iterator[ServerProcess]:
    """A server with a fake engine, shared by all tests that leave it alive."""
    with running_server(engine_config(model_folder)) as running:
        yield running
