"""Kernels compiled for real TPUs by libtpu, on a machine that has none."""

import json
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

CHILD = Path(__file__).with_name("aot_child.py")
TOPOLOGIES = {"v5e:2x2": "v5litepod-4", "v6e:2x2": "v6e-4", "tpu7x:2x2x1": "tpu7x-8"}
PATIENCE_S = 900
"""A minute where nothing else wants the processor."""

pytestmark = pytest.mark.timeout(PATIENCE_S + 20)
needs_libtpu = pytest.mark.skipif(
    find_spec("jax") is None or find_spec("libtpu") is None,
    reason="jax[tpu] is not installed; run 'make test-tpu'",
)


def run_child(*arguments, accelerator="v6e-4"):
    environment = os.environ | {"TPU_ACCELERATOR_TYPE": accelerator}
    return subprocess.run(
        [sys.executable, CHILD, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


@needs_libtpu
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_kernels_compile(topology):
    child = run_child(topology, accelerator=TOPOLOGIES[topology])
    assert child.returncode == 0, child.stderr[-2000:]
    facts = [json.loads(line) for line in child.stdout.splitlines() if line.startswith("{")]
    assert len(facts) == 18
    for each in facts:
        assert each["has_kernel"], each
        assert each["alias_bytes"] >= each["donated_bytes"], each


@needs_libtpu
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_bad_kernel_ends_its_process_with_the_compilers_reason(topology):
    child = run_child(topology, "bad", accelerator=TOPOLOGIES[topology])
    assert child.returncode != 0
    assert "Mosaic failed to compile TPU kernel" in child.stderr, child.stderr[-2000:]
    assert "{" not in child.stdout


@needs_libtpu
def test_a_compiler_that_aborts_ends_its_process_only():
    assert run_child("abort").returncode == -signal.SIGABRT
