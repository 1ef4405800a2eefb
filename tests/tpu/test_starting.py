"""Starts and ends of processes: the disk cache, the progress bar, an end while jax compiles."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("torchax", reason="torchax is not installed; run 'make test-tpu'")

from tests.tpu.engines import make_folder

ROOT = Path(__file__).parents[2]
PATIENCE_S = 600

# A start takes seconds where nothing else wants the processor.
pytestmark = pytest.mark.timeout(2 * PATIENCE_S + 20)


def run_child(mode, folder):
    environment = {name: each for name, each in os.environ.items() if not name.startswith("JAX_C")}
    return subprocess.run(
        [sys.executable, "-m", "tests.tpu.start_child", mode, folder],
        env=environment | {"XDG_CACHE_HOME": str(folder / "cache"), "COLUMNS": "120"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def test_programs_are_kept_on_disk_and_progress_is_shown(tmp_path):
    make_folder(tmp_path)
    found = []
    for _ in range(2):
        child = run_child("prepare_all", tmp_path)
        assert child.returncode == 0, child.stderr[-2000:]
        found.append(json.loads(child.stdout))
    first, second = found
    assert first["buckets"] == second["buckets"] > 2
    assert f"{first['buckets']}/{first['buckets']}" in child.stderr
    assert "Preparing step shapes" in child.stderr
    assert any((tmp_path / "cache" / "chiplet" / "xla").iterdir())
    assert first["misses"] >= first["buckets"]
    assert second["misses"] == 0, "everything was on disk"
    assert second["hits"] >= second["buckets"]


def test_a_process_that_ends_while_it_compiles_ends_in_order(tmp_path):
    child = run_child("end_while_compiling", make_folder(tmp_path))
    assert child.stdout.strip() == "ends", child.stderr[-2000:]
    assert child.returncode == 0, child.stderr[-2000:]
    assert "Fatal" not in child.stderr


def test_a_compiler_that_finds_no_chip_refuses(tmp_path):
    assert find_spec("libtpu"), "without it jax would not even look for a chip"
    child = run_child("start_on_a_chip", tmp_path)
    assert child.returncode == 1
    assert "jax finds no TPU and offers 'cpu' instead" in child.stderr
