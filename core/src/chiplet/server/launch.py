"""Launch: takes the port, starts the child processes and serves HTTP until told to stop."""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import socket
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

import uvicorn

from chiplet.config import EngineConfig, ServerOptions
from chiplet.errors import ConfigError
from chiplet.formats.catalogue import resolve_model
from chiplet.ipc.messages import EngineReady
from chiplet.server.app import API_PATHS, build_app
from chiplet.server.banner import ready_lines, server_url, starting_line
from chiplet.server.child import configure_logging
from chiplet.server.engine_client import EngineClient
from chiplet.server.errors import EngineStopping
from chiplet.server.metrics import Metrics
from chiplet.server.processes import ChildCommands, Generation
from chiplet.server.service import Service
from chiplet.server.supervisor import Supervisor
from chiplet.text.tokenizer import Tokenizer, load_tokenizer

if sys.platform == "win32":
    new_event_loop = asyncio.new_event_loop
else:
    from uvloop import new_event_loop

logger = logging.getLogger(__name__)

DRAIN_LIMIT_S = 20
"""How long open requests may take to end after the server was told to stop."""

DRAIN_POLL_S = 0.25
KEEP_ALIVE_S = 75
"""Longer than most proxies keep theirs, so that it is not the server who closes first."""

BACKLOG = 2048
"""Connections that the system holds until they are accepted."""

SignalHandler = Callable[[int, FrameType | None], object]


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
    launch = _Launch(config, options, commands or ChildCommands(), url)
    try:
        return launch.run(listener)
    finally:
        listener.close()


@dataclass(frozen=True, slots=True)
class _Launch:
    """One server with its settings."""

    config: EngineConfig
    options: ServerOptions
    commands: ChildCommands
    url: str

    def run(self, listener: socket.socket) -> int:
        # Until the event loop runs, a signal is an exception like Ctrl-C.
        with _handling_signals(signal.default_int_handler):
            generation = self._start()
            try:
                model = self.config.model
                tokenizer = load_tokenizer(
                    Path(model.model), model.tokenizer_path, model.chat_template
                )
                with (
                    _handling_signals(_leave_to_server),
                    asyncio.Runner(loop_factory=new_event_loop) as runner,
                ):
                    runner.run(self._serve(listener, generation, tokenizer))
            finally:
                generation.stop()
        return 0

    def _start(self) -> Generation:
        return Generation(self.config, self.commands)

    async def _serve(
        self, listener: socket.socket, generation: Generation, tokenizer: Tokenizer
    ) -> None:
        schedule = self.config.schedule
        metrics = Metrics()
        client = EngineClient(
            metrics, max_answers=schedule.max_running_requests + schedule.max_queued_requests
        )
        supervisor = Supervisor(client, metrics, start=self._start, on_ready=self._say_ready)
        app = build_app(Service(client, tokenizer, metrics), self.options, self.config.log)
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                lifespan="off",
                ws="none",
                http="httptools",
                log_config=None,
                log_level="warning",
                access_log=False,
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=DRAIN_LIMIT_S + 5,
            )
        )
        supervising = asyncio.create_task(supervisor.run(generation))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        draining = asyncio.create_task(limit_drain(server, client))
        await asyncio.wait({supervising, serving}, return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        await serving
        draining.cancel()
        if supervising.done():
            await supervising
        else:
            supervising.cancel()
            await asyncio.wait({supervising})

    def _say_ready(self, engine: EngineReady) -> None:
        has_key = self.options.api_key is not None
        for line in ready_lines(engine, self.url, paths=API_PATHS, has_key=has_key):
            print(line, flush=True)


async def limit_drain(server: uvicorn.Server, client: EngineClient) -> None:
    """End what is still open when the server was told to stop some time ago."""
    while not server.should_exit:
        await asyncio.sleep(DRAIN_POLL_S)
    if client.num_open:
        logger.info(
            "Stopping; %d open answers may take up to %d s to end.",
            client.num_open,
            DRAIN_LIMIT_S,
        )
    await asyncio.sleep(DRAIN_LIMIT_S)
    client.disconnect(EngineStopping("The server is stopping; repeat the request elsewhere."))


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


@contextmanager
def _handling_signals(handler: SignalHandler) -> Generator[None]:
    """Handle SIGTERM and SIGINT so, and as before afterwards."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _leave_to_server(number: int, frame: FrameType | None) -> None:
    # uvicorn handles the signal, drains, and raises it once more when it is done: nothing is left
    # to do then.
    pass
