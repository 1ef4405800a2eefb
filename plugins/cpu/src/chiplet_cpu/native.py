"""The plugin's own kernels, or the reason why there are none."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Final

from chiplet_cpu.sources import is_stale

# The type words of kernels/types.h.
DTYPE_CODES: Final = {"float32": 0, "bfloat16": 1, "float16": 2}

# The types of keys and values in eight bits there; None is those that are not coded.
KV_CODINGS: Final = {None: 0, "int8": 1, "fp8": 2}

TILES_MODEL: Final = "tiles_model"
"""An instruction set for tests: AMX's kernels, with its tile registers in plain code."""

_MODULE = "chiplet_cpu._native"
_REMEDY = "Install a C++20 compiler, then install chiplet-cpu again."
_BUILD_AGAIN = (
    "Build them again: pip install -e plugins/cpu (in Chiplet's repository: make install)."
)


def _load() -> tuple[Any, str, str]:
    """The extension; and if it is None, why, and what to do."""
    try:
        found = importlib.import_module(_MODULE)
    except ModuleNotFoundError:
        return None, "the plugin was installed without a compiler", _REMEDY
    except ImportError as error:
        return None, f"they cannot be loaded: {error}", _REMEDY
    # It may lack functions, or take other arguments: addresses among them.
    if is_stale(found):
        return None, "they were built from other sources than those of today", _BUILD_AGAIN
    return found, "", ""


library, reason, _remedy = _load()


def is_available() -> bool:
    """Whether kernels of the plugin's own can be called."""
    return library is not None


def explanation() -> str:
    """Why there are no kernels, for people; empty if there are."""
    return reason and f"no kernels of the plugin's own: {reason}"


def remedy() -> str:
    """What to do where there are no kernels; empty if there are."""
    return _remedy


def instruction_sets() -> tuple[str, ...]:
    """Those that the build has and this processor runs, best last."""
    return tuple(library.isa_name(level) for level in range(library.num_isas()))


def instruction_set() -> str:
    """The one that serves."""
    return library.isa()


def use_instruction_set(name: str) -> None:
    """Serve with this one, or with `TILES_MODEL`, from now on.

    Raises:
        ValueError: the build lacks it, or the processor does; or there are no kernels at all.
    """
    if library is None:
        raise ValueError(f"Instruction set '{name}' cannot be used: {explanation()}. {remedy()}")
    if name not in (*instruction_sets(), TILES_MODEL):
        allowed = ", ".join(instruction_sets())
        raise ValueError(f"Instruction set '{name}' cannot be used; choose one of {allowed}.")
    library.use_isa(name)


def set_threads(count: int, processors: Sequence[int] = ()) -> None:
    """How many threads work on an operation, the calling one included.

    Args:
        count: of threads.
        processors: where each of them is bound, but the first, which is the caller's; empty
            leaves them as they are.
    """
    if library is None:
        return
    library.set_threads(count)
    for index, processor in enumerate(processors):
        library.bind_thread(index, processor)
