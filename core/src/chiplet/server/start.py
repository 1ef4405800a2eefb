"""Start: takes the port, starts the child processes, and imports the HTTP stack meanwhile."""

from __future__ import annotations

import errno
import signal
import socket
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from chiplet.config import EngineConfig, ServerOptions
from chiplet.errors import ConfigError
from chiplet.formats.catalogue import resolve_model
from chiplet.server.banner import server_url, starting_line
from chiplet.server.child import configure_logging
from chiplet.server.processes import ChildCommands, Generation
from chiplet.server.signals import handling_signals


def serve(
    config: EngineConfig, options: ServerOptions, commands: ChildCommands | None = None
) -> int:
    """Serve over HTTP until told to stop; gives the exit code.

    Args:
        config: settings of the engine.
        options: settings of the HTTP server.
        commands: other child processes, for tests.

    Raises:
        ConfigError: a setting is wrong, or the engine cannot start.
        EngineError: the engine dies again and again.
    """
    configure_logging(config.log.log_level)
    listener = _listen(options)
    url = server_url(options, listener.getsockname()[1])
    config = _with_local_model(config)
    print(starting_line(config.model.served_model_name or config.model.model, url), flush=True)
    commands = commands or ChildCommands()
    # Until the event loop runs, a signal is an exception like Ctrl-C.
    with closing(listener), handling_signals(signal.default_int_handler):
        generation = Generation(config, commands)
        try:
            # The model loads beside this import, which takes half a second.
            from chiplet.server.launch import Launch  # noqa: PLC0415

            Launch(config, options, commands, url).run(listener, generation)
        finally:
            generation.stop()
    return 0


def _listen(options: ServerOptions) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((options.host, options.port))
    except OSError as error:
        listener.close()
        raise _bind_error(error, options) from error
    return listener


def _bind_error(error: OSError, options: ServerOptions) -> ConfigError:
    where = f"{options.host}:{options.port}"
    if error.errno == errno.EADDRINUSE:
        return ConfigError(
            f"Port {options.port} of {options.host} is in use by another program.",
            remedy="Stop that program, or give another '--port'; 0 picks a free one.",
        )
    if error.errno == errno.EACCES:
        return ConfigError(
            f"This user may not listen on {where}.", remedy="Give a '--port' of 1024 or more."
        )
    return ConfigError(
        f"Cannot listen on {where}: {error.strerror or error}.",
        remedy="Give '--host' an address of this machine, like 127.0.0.1.",
    )


def _with_local_model(config: EngineConfig) -> EngineConfig:
    """The same settings with the model on this machine, so that each process finds it at once.

    Clients go on asking for it by the name that the user gave.
    """
    given = Path(config.model.model)
    name = config.model.served_model_name or (
        given.resolve().name if given.exists() else config.model.model
    )
    path = resolve_model(config.model.model)
    return replace(config, model=replace(config.model, model=str(path), served_model_name=name))
