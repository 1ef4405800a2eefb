"""Typed one-way sockets between the processes of one server, over ZeroMQ and unix sockets."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import msgspec
import zmq
import zmq.asyncio

M = TypeVar("M")

MAX_SOCKET_PATH_BYTES = 107
"""Unix sockets have no longer names."""

SOCKET_MODE = 0o600
LINGER_MS = 1000
"""How long a closing process waits for its last words to leave."""

UNLIMITED = 0
"""A full queue would make the sender block or lose messages; neither end ever may."""


class HasFileno(Protocol):
    """Something that the system can wait for."""

    def fileno(self) -> int:
        """Its file descriptor."""
        ...


class Outbox:
    """Sends messages to one `Inbox`; never blocks, also while nobody listens yet."""

    def __init__(self, path: Path, encode: Callable[[Any], Any] | None = None) -> None:
        """Connect.

        Args:
            path: where the inbox is, or will be.
            encode: what stands in a message for a value of a type that msgspec does not know.
        """
        self._socket = _open(zmq.Context.instance(), zmq.PUSH)
        self._socket.connect(_address(path))
        self._encoder = msgspec.msgpack.Encoder(enc_hook=encode)

    def send(self, *messages: msgspec.Struct) -> None:
        """Queue messages: all of them, or none if one cannot be encoded."""
        for data in [self._encoder.encode(message) for message in messages]:
            self._socket.send(data)

    def close(self) -> None:
        """Close; what is queued still leaves if the reader takes it soon."""
        self._socket.close()


class Inbox(Generic[M]):
    """Receives the messages of one type (or union) that any number of senders send here."""

    def __init__(
        self, path: Path, messages: Any, decode: Callable[[type, Any], Any] | None = None
    ) -> None:
        """Be ready to receive.

        Args:
            path: of the socket, which is made.
            messages: their type.
            decode: makes a value of a type that msgspec does not know of what stands for it.
        """
        self._socket = _open(zmq.Context.instance(), zmq.PULL)
        self._socket.bind(_address(path))
        os.chmod(path, SOCKET_MODE)
        self._decoder: msgspec.msgpack.Decoder[M] = msgspec.msgpack.Decoder(
            messages, dec_hook=decode
        )

    def receive(self) -> M:
        """The next message; blocks until there is one."""
        return self._decoder.decode(self._socket.recv())

    def has_come(self, limit_s: float) -> bool:
        """Whether there is a message; blocks until there is one, or time is over."""
        return bool(self._socket.poll(round(1000 * limit_s)))

    def wait(self, other: HasFileno, *, limit_s: float | None = None) -> bool:
        """Block until a message has come or something else can be read from.

        Returns:
            False if time is over.
        """
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(other.fileno(), zmq.POLLIN)
        return bool(poller.poll(None if limit_s is None else max(1, round(1000 * limit_s))))

    def pending(self) -> Iterator[M]:
        """The messages that have arrived already; never blocks."""
        while True:
            try:
                data = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            yield self._decoder.decode(data)

    def close(self) -> None:
        """Close and drop what was not received."""
        self._socket.close(linger=0)


class AsyncInbox(Generic[M]):
    """An `Inbox` for an event loop."""

    def __init__(self, path: Path, messages: Any) -> None:
        self._socket = _open(zmq.asyncio.Context.instance(), zmq.PULL)
        self._socket.bind(_address(path))
        os.chmod(path, SOCKET_MODE)
        self._decoder: msgspec.msgpack.Decoder[M] = msgspec.msgpack.Decoder(messages)

    async def receive(self) -> M:
        """The next message."""
        return self._decoder.decode(await self._socket.recv())

    def close(self) -> None:
        """Close and drop what was not received."""
        self._socket.close(linger=0)


def _open(context: zmq.Context[Any], kind: int) -> Any:
    socket = context.socket(kind)
    socket.sndhwm = UNLIMITED
    socket.rcvhwm = UNLIMITED
    socket.linger = LINGER_MS
    return socket


def _address(path: Path) -> str:
    return f"ipc://{path}"
