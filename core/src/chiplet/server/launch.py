"""Launch: serves HTTP before the child processes until told to stop."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

import uvicorn

from chiplet.config import EngineConfig, ServerOptions
from chiplet.ipc.messages import EngineReady
from chiplet.server.app import API_PATHS, build_app
from chiplet.server.banner import ready_lines
from chiplet.server.engine_client import EngineClient
from chiplet.server.errors import EngineStopping
from chiplet.server.health import Health
from chiplet.server.metrics import Metrics
from chiplet.server.processes import ChildCommands, Generation
from chiplet.server.service import Service
from chiplet.server.signals import handling_signals
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


@dataclass(frozen=True, slots=True)
class Launch:
    """One server with its settings."""

    config: EngineConfig
    options: ServerOptions
    commands: ChildCommands
    url: str

    def run(self, listener: socket.socket, generation: Generation) -> None:
        """Serve on a bound socket, before the generation given and those that follow it.

        Raises:
            ConfigError: the engine cannot start.
            EngineError: the engine dies again and again.
        """
        model = self.config.model
        tokenizer = load_tokenizer(Path(model.model), model.tokenizer_path, model.chat_template)
        with (
            handling_signals(_leave_to_server),
            asyncio.Runner(loop_factory=new_event_loop) as runner,
        ):
            runner.run(self._serve(listener, generation, tokenizer))

    def _start(self, denied: tuple[str, ...]) -> Generation:
        """A generation whose engine does without some implementations."""
        device = self.config.device
        device = replace(device, deny=tuple(dict.fromkeys((*device.deny, *denied))))
        return Generation(replace(self.config, device=device), self.commands)

    async def _serve(
        self, listener: socket.socket, generation: Generation, tokenizer: Tokenizer
    ) -> None:
        schedule = self.config.schedule
        metrics = Metrics()
        client = EngineClient(
            metrics, max_answers=schedule.max_running_requests + schedule.max_queued_requests
        )
        health = Health()
        supervisor = Supervisor(
            client,
            metrics,
            health,
            silence_limit_s=self.options.engine_timeout_s,
            start=self._start,
            on_ready=self._say_ready,
        )
        app = build_app(Service(client, tokenizer, metrics, health), self.options, self.config.log)
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


def _leave_to_server(number: int, frame: FrameType | None) -> None:
    # uvicorn handles the signal, drains, and raises it once more when it is done: nothing is left
    # to do then.
    pass
