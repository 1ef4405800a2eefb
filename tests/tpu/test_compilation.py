"""Whole steps of Llama-3.1-8B, compiled by libtpu for four chips that are not there."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ACCELERATORS = {"v5e:2x2": "v5litepod-4", "v6e:2x2": "v6e-4", "tpu7x:2x2x1": "tpu7x-8"}

# A minute or two each, where nothing else wants the processor.
PATIENCE_S = 1200

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(PATIENCE_S + 20),
    pytest.mark.skipif(
        find_spec("torchax") is None or find_spec("libtpu") is None,
        reason="jax[tpu] is not installed; run 'make test-tpu'",
    ),
]


def run_child(*arguments, accelerator="v6e-4"):
    return subprocess.run(
        [sys.executable, "-m", "tests.tpu.aot_step", *arguments],
        env=os.environ | {"TPU_ACCELERATOR_TYPE": accelerator},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


@pytest.mark.parametrize("topology", ACCELERATORS)
@pytest.mark.parametrize(("attention", "num_layers"), [("pallas", 32), ("ragged", 2)])
def test_steps_compile_for_four_chips(topology, attention, num_layers):
    """The whole model with this plugin's kernels, its first layers with jax's."""
    arguments = (topology, attention, str(num_layers))
    child = run_child(*arguments, accelerator=ACCELERATORS[topology])
    assert child.returncode == 0, child.stderr[-3000:]
    lines = [json.loads(line) for line in child.stdout.splitlines() if line.startswith("{")]
    assert [each["bucket"] for each in lines] == ["decode 64", "prefill 512"]
    for facts in lines:
        assert facts["kernels"] >= num_layers, "a kernel per layer"
        assert facts["all_reduces"] >= 2 * num_layers, "two sums per layer"
        assert facts["host_calls"] == 0
        assert facts["alias_bytes"] >= facts["kv_bytes"], "the cache is written in place"
        assert facts["argument_bytes"] + facts["temp_bytes"] < facts["memory_bytes"]
        assert facts["flops"] > 0
        assert facts["bytes"] > 0
