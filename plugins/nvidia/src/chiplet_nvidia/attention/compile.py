"""`python -m chiplet_nvidia.attention.compile`: compile a module of FlashInfer into its cache."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from chiplet.api import Dtype, No
from chiplet_nvidia.attention.modules import (
    HEAD_DIMS,
    LATENT_DIMS,
    TYPE_NAMES,
    find_latent_module,
    find_module,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Compile the module that the arguments name, unless it is there already; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m chiplet_nvidia.attention.compile",
        description="Compile FlashInfer's FlashAttention-3 for a type and size of heads, or its "
        "latent attention for a type. It needs nvcc and ninja, and ten minutes of one core (latent "
        "attention: two); MAX_JOBS limits the cores.",
    )
    parser.add_argument("--dtype", choices=[str(each) for each in TYPE_NAMES], default="bfloat16")
    parser.add_argument("--head-dim", type=int, choices=HEAD_DIMS, default=128)
    parser.add_argument(
        "--latent", action="store_true", help="latent attention, rows of 576 with values of 512"
    )
    given = parser.parse_args(argv)
    dtype, head_dim = Dtype(given.dtype), None if given.latent else int(given.head_dim)
    found = _found(dtype, head_dim)
    if isinstance(found, No) and found.reasons[0].code == "not_compiled":
        what = (
            "latent attention" if head_dim is None else f"FlashAttention-3 for heads of {head_dim}"
        )
        print(f"Compiling {what} in {dtype} ...", flush=True)
        try:
            _compile(dtype, head_dim)
        except Exception as error:  # whatever compilers and FlashInfer raise
            print(f"FlashInfer could not compile it: {error}", file=sys.stderr)
            return 1
        found = _found(dtype, head_dim)
    if isinstance(found, Path):
        print(f"Compiled: {found}")
        return 0
    (reason,) = found.reasons
    print(f"{reason.text}. {reason.hint}", file=sys.stderr)
    return 1


def _found(dtype: Dtype, head_dim: int | None) -> Path | No:
    return find_latent_module(dtype) if head_dim is None else find_module(dtype, head_dim)


def _compile(dtype: Dtype, head_dim: int | None) -> None:
    """Heads of None: latent attention."""
    # Without a GPU here FlashInfer would not know for which to compile.
    os.environ.setdefault("FLASHINFER_CUDA_ARCH_LIST", "9.0a")
    torch = import_module("torch")
    kind = getattr(torch, str(dtype))
    makers = import_module("flashinfer.jit.attention.modules")
    if head_dim is None:
        value_dim, key_dim = LATENT_DIMS
        sizes = (value_dim, key_dim - value_dim)
        spec = makers.gen_batch_mla_module("fa3", kind, kind, kind, torch.int32, *sizes, False)
    else:
        spec = makers.gen_batch_prefill_module(
            "fa3", kind, kind, kind, torch.int32, head_dim, head_dim, 0, False, False, False
        )
    spec.build(verbose=False)


if __name__ == "__main__":
    sys.exit(main())
