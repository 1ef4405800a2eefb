"""The messages between rank 0 and the others, and how plans with their arrays become bytes.

rank 0 -> rank    Told, LaunchOrder, PrepareOrder, EndOrder
rank -> rank 0    Said, Prepared, RankFailed
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from chiplet.api import ShapeBucket
from chiplet.config import EngineConfig
from chiplet.step import StepPlan


class RankSettings(msgspec.Struct, frozen=True):
    """What a rank's process reads from its standard input before anything else.

    Attributes:
        folder: where the sockets are, and where communicators meet.
        config: as rank 0 has resolved it, with the rank's own device.
        log_level: as `logging` counts.
        ends_at_once: the system may kill the rank when the thread that started it is gone.
    """

    folder: str
    rank: int
    size: int
    config: EngineConfig
    log_level: int
    ends_at_once: bool


class Told(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """What all ranks said in a round of their meeting, in the order of ranks."""

    words: tuple[bytes, ...]


class LaunchOrder(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Launch a step in a bucket."""

    plan: StepPlan
    bucket: ShapeBucket


class PrepareOrder(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Prepare a bucket, and say so."""

    bucket: ShapeBucket


class EndOrder(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """End in order."""


class Said(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """What a rank says in a round of the meeting."""

    rank: int
    word: bytes


class Prepared(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """A rank has carried out a `PrepareOrder`; `failure` says why it could not."""

    rank: int
    failure: str


class RankFailed(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """A rank cannot go on, and ends.

    Attributes:
        message, remedy: for people.
        deny: whom another start should do without, as `--deny` takes it.
    """

    rank: int
    message: str
    remedy: str = ""
    deny: tuple[str, ...] = ()


ToRank = Told | LaunchOrder | PrepareOrder | EndOrder
ToLeader = Said | Prepared | RankFailed


def encode_array(value: Any) -> Any:
    """An array of a plan, `[n]`, as type and bytes of this machine's order."""
    if not isinstance(value, np.ndarray):
        raise NotImplementedError(f"a message holds a {type(value).__name__}")
    return value.dtype.str, value.tobytes()


def decode_array(kind: type, value: Any) -> Any:
    """An array of a plan, `[n]`, read-only."""
    name, data = value
    return np.frombuffer(data, dtype=np.dtype(name))
