"""What the child processes are told of threads."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from chiplet.server.processes import ChildCommands, Generation
from tests.server.server_process import engine_config, eventually

WRITE = """
import json, os, sys
from pathlib import Path
folder, name = sys.argv[1:]
part = Path(folder, name + ".part")
part.write_text(json.dumps(dict(os.environ)))
part.rename(Path(folder, name))
"""


def test_the_detokenizer_leaves_the_cores_to_the_engine(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "3")  # the user's word stands
    commands = {
        name: (sys.executable, "-c", WRITE, str(tmp_path), name)
        for name in ("engine", "detokenizer")
    }
    generation = Generation(engine_config(model_folder), ChildCommands(**commands))
    try:
        assert eventually(lambda: all((tmp_path / name).exists() for name in commands))
    finally:
        generation.stop()
    engine, detokenizer = (json.loads((tmp_path / name).read_text()) for name in commands)
    assert engine["MKL_NUM_THREADS"] == detokenizer["MKL_NUM_THREADS"] == "3"
    assert detokenizer["OMP_NUM_THREADS"] == detokenizer["OPENBLAS_NUM_THREADS"] == "1"
    assert "OMP_NUM_THREADS" not in engine
    assert "OPENBLAS_NUM_THREADS" not in engine
