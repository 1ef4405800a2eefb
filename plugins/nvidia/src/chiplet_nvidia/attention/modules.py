"""Compiled modules of FlashInfer: whether there is one for a type and size of heads, and where.

FlashInfer compiles a module for each combination of its options. Compiling takes minutes, so that
it never happens while an engine starts: `python -m chiplet_nvidia.attention.compile` does it once,
into FlashInfer's own cache. The package itself is not imported to look, which would take seconds.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from chiplet.api import Dtype, No

DISTRIBUTION = "flashinfer-python"
TRIED_VERSIONS = ("0.6.14",)
"""Signatures of compiled modules are FlashInfer's own affair: they are known for these alone."""

HEAD_DIMS = (64, 128, 256)
LATENT_DIMS = (512, 576)
"""Of values, and of the keys that they are part of."""

TYPE_NAMES = {Dtype.BFLOAT16: "bf16", Dtype.FLOAT16: "f16"}
"""As names of modules have them."""

_ARCHITECTURE = "90a"


def find_module(dtype: Dtype, head_dim: int) -> Path | No:
    """The module of FlashAttention-3 for queries, keys and values of a type; why there is none."""
    return _find(
        module_name(dtype, head_dim),
        f"heads of {head_dim} in {dtype}",
        f"--dtype {dtype} --head-dim {head_dim}",
    )


def find_latent_module(dtype: Dtype) -> Path | No:
    """The module of latent attention for rows of a type; why there is none."""
    return _find(latent_module_name(dtype), f"latent rows in {dtype}", f"--latent --dtype {dtype}")


def _find(name: str, what: str, arguments: str) -> Path | No:
    try:
        installed = version(DISTRIBUTION)
    except PackageNotFoundError:
        hint = "pip install 'chiplet-nvidia[flashinfer]'"
        return No.because("not_installed", "FlashInfer is not installed", hint)
    if installed not in TRIED_VERSIONS:
        tried = ", ".join(TRIED_VERSIONS)
        hint = f"pip install '{DISTRIBUTION}=={TRIED_VERSIONS[-1]}'"
        return No.because("version", f"FlashInfer {installed}; tried: {tried}", hint)
    for folder in _folders(installed):
        path = folder / name / f"{name}.so"
        if path.is_file():
            return path
    command = f"python -m chiplet_nvidia.attention.compile {arguments}"
    text = f"FlashInfer has no compiled module for {what}"
    return No.because("not_compiled", text, f"compile it once, which takes minutes: {command}")


def load_module(path: Path) -> Any:
    """The module's functions: `plan`, and `ragged_run` and `paged_run`, or `run`."""
    return import_module("tvm_ffi").load_module(str(path))


def module_name(dtype: Dtype, head_dim: int) -> str:
    """As FlashInfer names it: without window, capped scores and rotation."""
    kind = TYPE_NAMES[dtype]
    return (
        f"batch_prefill_with_kv_cache_dtype_q_{kind}_dtype_kv_{kind}_dtype_o_{kind}_dtype_idx_i32_"
        f"head_dim_qk_{head_dim}_head_dim_vo_{head_dim}_posenc_0_use_swa_False_"
        "use_logits_cap_False_f16qk_False_sm90"
    )


def latent_module_name(dtype: Dtype) -> str:
    """As FlashInfer names it: values and what carries the position have sizes of their own."""
    kind, (value_dim, key_dim) = TYPE_NAMES[dtype], LATENT_DIMS
    return (
        f"batch_mla_attention_dtype_q_{kind}_dtype_kv_{kind}_dtype_o_{kind}_dtype_idx_i32_"
        f"head_dim_ckv_{value_dim}_head_dim_kpe_{key_dim - value_dim}_profiler_False_sm90"
    )


def _folders(installed: str) -> Iterator[Path]:
    """Where FlashInfer looks: its package of compiled modules, its own package, its cache."""
    if find_spec("flashinfer_jit_cache") is not None:
        prebuilt = import_module("flashinfer_jit_cache")
        if str(prebuilt.__version__).startswith(installed):
            yield Path(prebuilt.get_jit_cache_dir())
    package = find_spec("flashinfer")
    if package is not None and package.origin is not None:
        yield Path(package.origin).parent / "data" / "aot"
    base = Path(os.environ.get("FLASHINFER_WORKSPACE_BASE") or Path.home())
    for folder in sorted((base / ".cache" / "flashinfer" / installed).glob("*")):
        if _ARCHITECTURE in folder.name.split("_"):
            yield folder / "cached_ops"
