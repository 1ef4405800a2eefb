"""`python -m chiplet.server.detokenizer_process`: turns tokens into text beside the engine."""

from __future__ import annotations

import sys
from pathlib import Path

from chiplet.config import ModelOptions
from chiplet.ipc.messages import Abort, DetokenizerReady, StepTokens, ToDetokenizer
from chiplet.ipc.sockets import Inbox, Outbox
from chiplet.server.child import (
    DETOKENIZER_SOCKET,
    ENGINE_SOCKET,
    SERVER_SOCKET,
    begin_child,
    explain_failure,
)
from chiplet.server.detokenizer import Detokenizer
from chiplet.text.tokenizer import Tokenizer, load_tokenizer


def run_detokenizer() -> int:
    """Be the detokenizer process; returns its exit code, and only if it fails."""
    settings = begin_child()
    directory = Path(settings.directory)
    inbox: Inbox[StepTokens] = Inbox(directory / DETOKENIZER_SOCKET, ToDetokenizer)
    engine = Outbox(directory / ENGINE_SOCKET)
    server = Outbox(directory / SERVER_SOCKET)
    try:
        detokenizer = Detokenizer(_load(settings.config.model))
        server.send(DetokenizerReady())
        while True:
            text, stopped = detokenizer.take(inbox.receive())
            if text.deltas:
                server.send(text)
            if stopped:
                engine.send(Abort(stopped))
    except Exception as error:
        server.send(explain_failure(error))
    finally:
        inbox.close()
        engine.close()
        server.close()
    return 1


def _load(model: ModelOptions) -> Tokenizer:
    return load_tokenizer(Path(model.model), model.tokenizer_path, model.chat_template)


if __name__ == "__main__":
    sys.exit(run_detokenizer())
