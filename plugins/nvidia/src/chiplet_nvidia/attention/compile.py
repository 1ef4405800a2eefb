"""`python -m chiplet_nvidia.attention.compile`: compile a module of FlashInfer into its cache."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from chiplet.api import Dtype, No
from chiplet_nvidia.attention.modules import HEAD_DIMS, TYPE_NAMES, find_module


def main(argv: Sequence[str] | None = None) -> int:
    """Compile the module that the arguments name, unless it is there already; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m chiplet_nvidia.attention.compile",
        description="Compile FlashInfer's FlashAttention-3 for a type and size of heads. It needs "
        "nvcc and ninja, and ten minutes of one core; MAX_JOBS limits the cores.",
    )
    parser.add_argument("--dtype", choices=[str(each) for each in TYPE_NAMES], default="bfloat16")
    parser.add_argument("--head-dim", type=int, choices=HEAD_DIMS, default=128)
    given = parser.parse_args(argv)
    dtype, head_dim = Dtype(given.dtype), int(given.head_dim)
    found = find_module(dtype, head_dim)
    if isinstance(found, No) and found.reasons[0].code == "not_compiled":
        print(f"Compiling FlashAttention-3 for heads of {head_dim} in {dtype} ...", flush=True)
        try:
            _compile(dtype, head_dim)
        except Exception as error:  # whatever compilers and FlashInfer raise
            print(f"FlashInfer could not compile it: {error}", file=sys.stderr)
            return 1
        found = find_module(dtype, head_dim)
    if isinstance(found, Path):
        print(f"Compiled: {found}")
        return 0
    (reason,) = found.reasons
    print(f"{reason.text}. {reason.hint}", file=sys.stderr)
    return 1


def _compile(dtype: Dtype, head_dim: int) -> None:
    # Without a GPU here FlashInfer would not know for which to compile.
    os.environ.setdefault("FLASHINFER_CUDA_ARCH_LIST", "9.0a")
    torch = import_module("torch")
    kind = getattr(torch, str(dtype))
    spec = import_module("flashinfer.jit.attention").gen_batch_prefill_module(
        "fa3", kind, kind, kind, torch.int32, head_dim, head_dim, 0, False, False, False
    )
    spec.build(verbose=False)


if __name__ == "__main__":
    sys.exit(main())
