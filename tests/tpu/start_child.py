"""What a test of starts and ends does in a process of its own: `start_child.py MODE FOLDER`."""

from __future__ import annotations

import json
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import jax

from chiplet_tpu.compilation.jax_compiler import JaxCompiler
from tests.tpu.engines import EMULATED, start_engine

FEW_BUCKETS = {"context_length": 32, "max_total_tokens": 256}


def prepare_all(folder: Path) -> None:
    """Prepare all buckets, and say how many there were and how many the disk had."""
    seen: Counter[str] = Counter()
    jax.monitoring.register_event_listener(lambda name, **details: seen.update([name]))
    engine, _ = start_engine(folder, **EMULATED, **FEW_BUCKETS)
    ready: Any = engine._runner._executables._ready
    facts = {"buckets": len(ready), "hits": seen["/jax/compilation_cache/cache_hits"]}
    print(json.dumps(facts | {"misses": seen["/jax/compilation_cache/cache_misses"]}))


def end_while_compiling(folder: Path) -> None:
    """Start an engine, and end as soon as the thread behind it compiles."""
    compiles = threading.Event()
    prepare = JaxCompiler.prepare

    def noted(self: JaxCompiler, step: Any) -> Any:
        compiles.set()
        return prepare(self, step)

    JaxCompiler.prepare = noted  # type: ignore[method-assign]
    start_engine(folder, **(EMULATED | {"prepare_first": False}), **FEW_BUCKETS)
    assert compiles.wait(60), "nothing was compiled"
    print("ends")


def start_on_a_chip(folder: Path) -> None:
    """Start the runtime as if there were a TPU."""
    JaxCompiler(num_ranks=1, is_emulated=False)


MODES = {each.__name__: each for each in (prepare_all, end_while_compiling, start_on_a_chip)}

if __name__ == "__main__":
    MODES[sys.argv[1]](Path(sys.argv[2]))
