"""`chiplet serve`."""

from __future__ import annotations

import importlib
from typing import Protocol

from chiplet.cli.command import ENGINE_GROUPS, MODEL, Command, Given
from chiplet.config import EngineConfig, ServerOptions

START_MODULE = "chiplet.server.start"


class Serve(Protocol):
    """Starts the processes of a server and returns when it has stopped."""

    def __call__(self, config: EngineConfig, options: ServerOptions) -> int:
        """Exit code of the server. Blocks until it is told to stop."""
        ...


def run(given: Given) -> int:
    """Serve until stopped."""
    # Command line and server are strangers: the server is known by its name, like a sub-command.
    serve: Serve = importlib.import_module(START_MODULE).serve
    return serve(given.engine_config(), given.options("server", ServerOptions()))


COMMAND = Command(
    name="serve",
    summary="Serve a model over HTTP, in the manner of the OpenAI API.",
    run=run,
    groups={"server": ServerOptions, **ENGINE_GROUPS},
    positional=MODEL,
)
