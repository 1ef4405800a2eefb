"""Generation: one engine, one detokenizer, and the sockets that join them to the server."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import msgspec

from chiplet.config import EngineConfig
from chiplet.crash import place_of
from chiplet.errors import ConfigError
from chiplet.ipc.messages import ChildSettings, Failed, ToServer
from chiplet.ipc.process_ends import CRASHES, describe_exit
from chiplet.ipc.sockets import MAX_SOCKET_PATH_BYTES, AsyncInbox, Outbox
from chiplet.server.child import (
    DETOKENIZER_SOCKET,
    ENGINE_SOCKET,
    SERVER_SOCKET,
    STACK_FILE,
    STACK_SIGNAL,
)

STOP_LIMIT_S = 8.0
"""How long a child that was told to end may take before it is killed.

More than a plugin has for its hook `shutdown`, so that one that hangs is left behind in order.
"""

STACK_LIMIT_S = 1.0
"""How long an engine may take to write its stack, before it is killed without."""

_WATCH_INTERVAL_S = 0.05

logger = logging.getLogger(__name__)

_ONE_THREAD: Mapping[str, str] = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), "1"
)
"""For the detokenizer: its libraries would start a thread for each core, for work it never has."""


@dataclass(frozen=True, slots=True)
class ChildCommands:
    """How the child processes are started; tests put a fake engine here."""

    engine: tuple[str, ...] = (sys.executable, "-m", "chiplet.server.engine_process")
    detokenizer: tuple[str, ...] = (sys.executable, "-m", "chiplet.server.detokenizer_process")


class Generation:
    """Child processes and sockets that live and die together.

    Attributes:
        inbox: what both children send to the server.
        engine: where requests go.
    """

    def __init__(self, config: EngineConfig, commands: ChildCommands) -> None:
        self._directory = _make_directory()
        self.inbox: AsyncInbox[ToServer] = AsyncInbox(self._directory / SERVER_SOCKET, ToServer)
        self.engine = Outbox(self._directory / ENGINE_SOCKET)
        settings = msgspec.json.encode(ChildSettings(str(self._directory), config)) + b"\n"
        self._children = {
            "engine": _spawn(commands.engine, settings),
            "detokenizer": _spawn(commands.detokenizer, settings, _ONE_THREAD),
        }

    async def wait_death(self) -> Failed:
        """How the first child to die died, as soon as one has."""
        while True:
            for name, child in self._children.items():
                code = child.poll()
                if code is not None:
                    text = f"The {name} process ended with {describe_exit(code)}."
                    return Failed(text, is_crash=name == "engine" and -code in CRASHES)
            await asyncio.sleep(_WATCH_INTERVAL_S)

    def last_stack(self) -> str:
        """The stack that the engine left if a signal ended it; empty otherwise."""
        try:
            return (self._directory / STACK_FILE).read_text("utf-8", "replace")
        except FileNotFoundError:
            return ""

    def kill_engine(self) -> str:
        """End an engine that answers no more; it would not hear that it is to end.

        Returns:
            The stack of where it was; empty if it could not say.
        """
        engine = self._children["engine"]
        stack = self._ask_stack(engine)
        engine.kill()
        engine.wait()
        return stack

    def end_children(self) -> None:
        """End both children; blocks until they have ended, or are killed. May be repeated."""
        for child in self._children.values():
            child.terminate()
        for name, child in self._children.items():
            try:
                child.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                place = place_of(self._ask_stack(child)) if name == "engine" else ""
                logger.warning(
                    "The %s process has not ended %g s after it was told to, and is killed.%s",
                    name,
                    STOP_LIMIT_S,
                    f" It was at {place}." if place else "",
                )
                child.kill()
                child.wait()

    def stop(self) -> None:
        """End both children, close the sockets and remove their folder; may be repeated."""
        self.end_children()
        for child in self._children.values():
            assert child.stdin is not None
            child.stdin.close()
        self.inbox.close()
        self.engine.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _ask_stack(self, engine: subprocess.Popen[bytes]) -> str:
        """The stack of an engine that is killed next; a signal that nobody handles does that."""
        engine.send_signal(STACK_SIGNAL)
        end_s = time.monotonic() + STACK_LIMIT_S
        before, stack = "", self.last_stack()
        while time.monotonic() < end_s and not (stack and stack == before):
            time.sleep(_WATCH_INTERVAL_S)
            before, stack = stack, self.last_stack()
        return stack


def _make_directory() -> Path:
    # mkdtemp makes the folder for its owner alone, so the sockets are never open to others.
    directory = Path(tempfile.mkdtemp(prefix="chiplet-"))
    longest = directory / DETOKENIZER_SOCKET
    if len(os.fsencode(longest)) > MAX_SOCKET_PATH_BYTES:
        directory.rmdir()
        raise ConfigError(
            f"The folder for temporary files is too deep for sockets: '{longest}' has more than "
            f"{MAX_SOCKET_PATH_BYTES} bytes.",
            remedy="Set TMPDIR to a folder with a shorter name, like /tmp.",
        )
    return directory


def _spawn(
    command: tuple[str, ...], settings: bytes, environment: Mapping[str, str] = MappingProxyType({})
) -> subprocess.Popen[bytes]:
    """Start a child; what the user's environment says comes before what is given here."""
    # A session of its own: Ctrl-C in the terminal is for the server, which tells the others.
    child = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        start_new_session=True,
        env={**environment, **os.environ},
    )
    assert child.stdin is not None
    try:
        # Standard input stays open; its end tells the child that the server is gone.
        child.stdin.write(settings)
        child.stdin.flush()
    except BrokenPipeError:
        pass  # Dead already; whoever watches the generation sees it.
    return child
