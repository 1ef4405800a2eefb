"""`python -m chiplet.server.engine_process`: the only process of a server that loads a model."""

from __future__ import annotations

import gc
from contextlib import ExitStack
from functools import partial

from chiplet.config import EngineConfig
from chiplet.ipc.messages import EngineReady
from chiplet.plugins import begin_choice, discover
from chiplet.server.engine_loop import ServedEngine, run_engine
from chiplet.server.termination import end_with


def start_engine(at_end: ExitStack, config: EngineConfig) -> tuple[ServedEngine, EngineReady]:
    """An engine with its model loaded, and what the server must know of it.

    Mutates: `at_end`, which then tells the plugins that they are used no more.
    """
    # What a start makes stays: looking for garbage in it takes a tenth of the time.
    gc.disable()
    plugins = discover(config.device)
    at_end.callback(plugins.shut_down)
    choice = begin_choice(plugins, config.device)
    # The tensor library takes a second to import; the probes run meanwhile.
    from chiplet import worker  # noqa: PLC0415

    engine, facts = worker.start(config, choice)
    at_end.callback(engine.close)
    gc.freeze()
    gc.enable()
    ready = EngineReady(
        model_name=facts.model_name,
        device=facts.device,
        dtype=facts.dtype,
        limits=facts.limits,
        banner=facts.banner,
        plan=facts.plan,
        in_use=facts.in_use,
        ranks=facts.ranks,
    )
    return engine, ready


if __name__ == "__main__":
    with ExitStack() as at_end:
        exit_code = run_engine(partial(start_engine, at_end))
    end_with(exit_code)
