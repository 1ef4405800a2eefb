"""Kernels without a GPU: interpreted against the reference, and compiled for devices elsewhere."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

# Shared memory that a program can get, in bytes; LDS of a workgroup on gfx942 and gfx950.
SHARED_LIMITS = {
    "cuda:80": 166912,
    "cuda:90": 232448,
    "cuda:100": 232448,
    "hip:gfx942": 65536,
    "hip:gfx950": 163840,
}
MAX_REGISTERS = {"cuda": 255, "hip": 512}
# Bytes of stack: what filtered sampling in float64 takes on sm_80 and sm_100, with triton 3.8, and
# decodes of caches in eight bits that share prefixes on sm_90.
STACK = {
    ("cuda:80", "sample_kernel"): 8,
    ("cuda:100", "sample_kernel"): 8,
    ("cuda:90", "prefix_kernel"): 8,
    ("cuda:90", "decode_kernel"): 8,
}
SLOW = set(SHARED_LIMITS) - {"cuda:90"}


def run(*command, **environment):
    result = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-6000:]
    return result.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_interpreted_kernels_match_the_reference():
    folder = str(HERE / "interpreted")
    out = run("-m", "pytest", "-p", "no:cacheprovider", folder, TRITON_INTERPRET="1")
    assert " passed" in out


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "target",
    [pytest.param(each, marks=pytest.mark.slow if each in SLOW else ()) for each in SHARED_LIMITS],
)
def test_kernels_compile_and_would_fit(target, tmp_path):
    out = run(str(HERE / "compile_kernels.py"), target, TRITON_CACHE_DIR=str(tmp_path))
    kernels = json.loads(out.splitlines()[-1])
    assert len(kernels) > 15
    for kernel in kernels:
        assert kernel["spills"] <= STACK.get((target, kernel["kernel"]), 0), kernel
        assert kernel["shared_bytes"] <= SHARED_LIMITS[target], kernel
        assert kernel["registers"] <= MAX_REGISTERS[target.partition(":")[0]], kernel
