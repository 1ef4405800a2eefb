"""The peers' protocol, from the adapter's side; nothing beyond the standard library.

One JSON object per line. Standard input brings `{"op": ...}`, standard output answers each with
one object: what the operation gives, or `{"error": text}`, or `{"unsupported": text}` where the
peer cannot do this at all.

    start     model, threads, max_streams, max_tokens, extra -> any facts
    generate  prompts (lists of token ids), num_tokens        -> seconds, num_tokens
    report                                                    -> any facts, like versions
    quit                                                      -> {}, and the process ends
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class UnsupportedError(Exception):
    """This peer cannot do what it was asked; no failure."""


@dataclass(frozen=True)
class Start:
    """How a peer is to start.

    Attributes:
        model: a file or folder that its entry in peers.toml asked for.
        threads: how many the peer may compute with.
        max_streams: most prompts in one `generate`.
        max_tokens: tokens that the KV cache must hold altogether.
        extra: the peer's own settings, from peers.toml.
    """

    model: str
    threads: int
    max_streams: int
    max_tokens: int
    extra: dict[str, Any]


class Peer(Protocol):
    """What an adapter provides."""

    def start(self, settings: Start) -> dict[str, Any]:
        """Load the model; returns facts for people. Blocks until it could generate."""
        ...

    def generate(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> int:
        """Continue all prompts greedily by exactly `num_tokens`; the number of new tokens."""
        ...

    def report(self) -> dict[str, Any]:
        """Facts for people: versions, chosen kernels."""
        ...


def serve(peer: Peer) -> None:
    """Answer operations on standard input until `quit` or its end."""
    # Libraries print to standard output; the protocol keeps a copy of it for itself.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        task = json.loads(line)
        print(json.dumps(_answer(peer, task)), file=answers, flush=True)
        if task["op"] == "quit":
            break
    # Some libraries hang or crash on their way out, after all has been said.
    os._exit(0)


def _answer(peer: Peer, task: dict[str, Any]) -> dict[str, Any]:
    try:
        return _act(peer, task)
    except UnsupportedError as reason:
        return {"unsupported": str(reason)}
    except Exception as error:  # the parent makes a row of it
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}


def _act(peer: Peer, task: dict[str, Any]) -> dict[str, Any]:
    operation = task["op"]
    if operation == "start":
        return peer.start(Start(**{name: each for name, each in task.items() if name != "op"}))
    if operation == "generate":
        start = time.perf_counter()
        num_tokens = peer.generate(task["prompts"], task["num_tokens"])
        return {"seconds": time.perf_counter() - start, "num_tokens": num_tokens}
    if operation == "report":
        return peer.report()
    if operation == "quit":
        return {}
    raise ValueError(f"operation '{operation}'; known: start, generate, report, quit")
