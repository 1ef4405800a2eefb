"""`python -m chiplet.server.engine_process`: the only process of a server that loads a model."""

from __future__ import annotations

import sys

from chiplet import worker
from chiplet.config import EngineConfig
from chiplet.ipc.messages import EngineReady
from chiplet.server.engine_loop import ServedEngine, run_engine


def start_engine(config: EngineConfig) -> tuple[ServedEngine, EngineReady]:
    """An engine with its model loaded, and what the server must know of it."""
    engine, facts = worker.start(config)
    ready = EngineReady(
        model_name=facts.model_name,
        device=facts.device,
        dtype=facts.dtype,
        limits=facts.limits,
        banner=facts.banner,
        plan=facts.plan,
    )
    return engine, ready


if __name__ == "__main__":
    sys.exit(run_engine(start_engine))
