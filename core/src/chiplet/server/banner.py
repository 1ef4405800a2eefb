"""What the person who starts a server sees."""

from __future__ import annotations

from collections.abc import Iterator

from chiplet import __version__
from chiplet.config import ServerOptions
from chiplet.ipc.messages import EngineReady

EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}
"""Addresses that mean all of the machine's, with one of them that a client can use."""


def server_url(options: ServerOptions, port: int) -> str:
    """Where a client on this machine finds the server."""
    host = EVERY_ADDRESS.get(options.host, options.host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def starting_line(model: str, url: str) -> str:
    """Said at once: the port is taken, the model is being loaded."""
    return f"Chiplet {__version__} is starting at {url} with {model} ..."


def ready_lines(
    engine: EngineReady, url: str, *, paths: tuple[str, ...], has_key: bool
) -> Iterator[str]:
    """Said when requests are served: what, where, and how to try it."""
    yield ""
    yield f"  Model    {engine.model_name} ({engine.dtype})"
    yield f"  Device   {engine.device}"
    yield f"  Context  {engine.limits.context_length} tokens"
    for line in engine.banner:
        yield f"           {line}"
    yield f"  URL      {url}"
    yield f"  Paths    {' '.join(paths[:5])}"
    yield f"           {' '.join(paths[5:])}"
    yield ""
    yield "Try it:"
    yield f"  {curl_line(engine.model_name, url, has_key=has_key)}"
    yield ""
    yield "Ready. Ctrl-C stops the server."


def curl_line(model: str, url: str, *, has_key: bool) -> str:
    """A command that asks the server something."""
    key = ' -H "Authorization: Bearer $API_KEY"' if has_key else ""
    body = (
        f'{{"model": "{model}", "temperature": 0, "messages": '
        '[{"role": "user", "content": "What is gravity?"}]}'
    )
    return f"curl {url}/v1/chat/completions -H 'Content-Type: application/json'{key} -d '{body}'"
