"""What engine and detokenizer have in common as child processes of the server."""

from __future__ import annotations

import faulthandler
import logging
import signal
import sys
from pathlib import Path

import msgspec

from chiplet.errors import ChipletError, ConfigError, EngineError
from chiplet.ipc.messages import ChildSettings, Failed
from chiplet.ipc.process_ends import end_with_parent, read_settings

DETOKENIZER_SOCKET = "detokenizer.sock"
ENGINE_SOCKET = "engine.sock"
SERVER_SOCKET = "server.sock"
"""Names of the sockets in a generation's folder, after who receives there."""

STACK_FILE = "stack.txt"
"""In the same folder: where the engine's stack is written if a signal ends it, or asks for it."""

STACK_SIGNAL = signal.SIGUSR1
"""Asks the engine for its stack, before it is killed for not answering."""

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
STDIN = 0


def begin_child() -> ChildSettings:
    """Settings of this child process, which from now on ends when its parent does.

    The parent writes them as one line of JSON to the child's standard input and keeps it open:
    its end is the parent's end.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    line = read_settings(STDIN)
    end_with_parent(STDIN, at_once=True)
    settings = msgspec.json.decode(line, type=ChildSettings)
    configure_logging(settings.config.log.log_level)
    return settings


def leave_stacks(directory: Path) -> None:
    """Write this process's stack into a folder when it crashes or is asked for it, from now on.

    Neither needs the interpreter, which a call that hangs may hold.
    """
    path = directory / STACK_FILE
    path.touch(mode=0o600)
    stack = path.open("wb")  # faulthandler holds on to it
    faulthandler.enable(stack)
    faulthandler.register(STACK_SIGNAL, stack)


def configure_logging(level: str) -> None:
    """Log to standard error from `level` on; a program that set up logging keeps its own."""
    logging.basicConfig(level=level.upper(), format=LOG_FORMAT, stream=sys.stderr)


def explain_failure(error: Exception) -> Failed:
    """Last words for an error that ends a child process."""
    if isinstance(error, ConfigError):
        return Failed(error.problem, error.remedy)
    if isinstance(error, EngineError):
        return Failed(str(error), deny=error.deny, is_crash=error.is_crash)
    if isinstance(error, ChipletError):
        return Failed(str(error))
    logging.getLogger(__name__).debug("What ended this process:", exc_info=error)
    return Failed(
        f"The engine failed: {type(error).__name__}: {error}",
        "See the traceback with '--log-level debug'.",
    )
