"""Serves a tiny model with torch_xla, and prints how its cache looks: `xla_child.py FOLDER`.

In a process of its own, whose XLA_FLAGS say where it writes its programs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from chiplet.sampling_params import SamplingParams
from tests.tpu.engines import EMULATED, random_prompts, serve, start_engine


def main(folder: Path) -> None:
    engine, facts = start_engine(folder, **EMULATED, context_length=32, max_total_tokens=256)
    greedy = SamplingParams(temperature=0, max_tokens=4)
    serve(engine, facts, random_prompts(2, 20), [greedy] * 2)
    state, executables = engine._runner._tables.state, engine._runner._executables
    shapes = [list(each.shape) for each in state.kv]
    print(json.dumps({"kv": shapes, "programs": len(executables._ready)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
