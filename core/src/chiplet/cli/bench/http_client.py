"""HTTP client of the benchmarks: one connection per request, a time stamp per streamed event."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from chiplet.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens."""

    host: str
    port: int
    is_secure: bool = False
    api_key: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """When the parts of one answer arrived.

    Attributes:
        start_s: clock when the request was sent.
        arrivals_s: clock at each event that brought text.
        end_s: clock when the stream ended.
        num_prompt_tokens, num_cached_tokens, num_output_tokens: the server's own count.
        error: the server's message instead of an answer; empty if all went well.
    """

    start_s: float
    end_s: float
    arrivals_s: tuple[float, ...] = ()
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_output_tokens: int = 0
    error: str = ""


def parse_address(url: str, api_key: str | None = None) -> Address:
    """The address in a URL like 'http://127.0.0.1:8000'.

    Raises:
        ConfigError: it is no http URL.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"--url is '{url}'; allowed: http or https URLs.",
            remedy="Write it like http://127.0.0.1:8000.",
        )
    is_secure = parts.scheme == "https"
    return Address(parts.hostname, parts.port or (443 if is_secure else 80), is_secure, api_key)


async def stream(address: Address, path: str, body: Mapping[str, Any]) -> Timeline:
    """Post a streaming request and read its answer to the end. Network errors are in `error`."""
    start_s = time.perf_counter()
    arrivals: list[float] = []
    usage: Mapping[str, Any] = {}
    error = ""
    options = {"stream": True, "stream_options": {"include_usage": True}}
    try:
        async for event in _events(address, path, {**body, **options}):
            if "error" in event:
                error = str(event["error"].get("message", event["error"]))
                continue
            usage = event.get("usage") or usage
            if any(_text_of(choice) for choice in event.get("choices", ())):
                arrivals.append(time.perf_counter())
    except (OSError, EOFError, ValueError) as failure:
        error = f"{type(failure).__name__}: {failure}"
    details = usage.get("prompt_tokens_details") or {}
    return Timeline(
        start_s=start_s,
        end_s=time.perf_counter(),
        arrivals_s=tuple(arrivals),
        num_prompt_tokens=usage.get("prompt_tokens", 0),
        num_cached_tokens=details.get("cached_tokens") or 0,
        num_output_tokens=usage.get("completion_tokens", 0),
        error=error,
    )


async def is_ok(address: Address, path: str) -> bool:
    """Whether a GET is answered 200; False if nobody listens."""
    try:
        reader, writer = await _send(address, "GET", path, b"")
    except OSError:
        return False
    try:
        return b" 200 " in await reader.readline()
    finally:
        writer.close()


def _text_of(choice: Mapping[str, Any]) -> str:
    return choice.get("text") or (choice.get("delta") or {}).get("content") or ""


async def _send(
    address: Address, method: str, path: str, body: bytes
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(
        address.host, address.port, ssl=True if address.is_secure else None
    )
    lines = [
        f"{method} {path} HTTP/1.1",
        f"Host: {address.host}:{address.port}",
        "Connection: close",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    ]
    if address.api_key:
        lines.append(f"Authorization: Bearer {address.api_key}")
    writer.write("\r\n".join([*lines, "", ""]).encode() + body)
    await writer.drain()
    return reader, writer


async def _events(
    address: Address, path: str, body: Mapping[str, Any]
) -> AsyncIterator[dict[str, Any]]:
    reader, writer = await _send(address, "POST", path, json.dumps(body).encode())
    try:
        status = int((await reader.readline()).split()[1])
        is_chunked = False
        while (line := await reader.readline()).strip():
            is_chunked |= line.lower().startswith(b"transfer-encoding: chunked")
        if status != 200:
            yield {"error": {"message": f"status {status}: {(await reader.read()).decode()[:300]}"}}
            return
        rest = b""
        async for part in _parts(reader, is_chunked):
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                text = line.strip().removeprefix(b"data:").strip()
                if line.startswith(b"data:") and text != b"[DONE]":
                    yield json.loads(text)
    finally:
        writer.close()


async def _parts(reader: asyncio.StreamReader, is_chunked: bool) -> AsyncIterator[bytes]:
    if not is_chunked:
        while part := await reader.read(65536):
            yield part
        return
    while size := int((await reader.readline()).partition(b";")[0], 16):
        yield await reader.readexactly(size)
        await reader.readline()
