"""Proposals: how a plugin suggests settings, and checks it reports to `chiplet doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class Proposal:
    """A better default for this device. A value that the user gave always stands.

    Attributes:
        path: group and field in EngineConfig, like 'schedule.chunked_prefill_size'.
        value: what it should be.
        reason: why, for the log.
    """

    path: str
    value: object
    reason: str


class CheckStatus(StrEnum):
    """Outcome of a check."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of `chiplet doctor`.

    Attributes:
        name: what was looked at.
        status: outcome.
        detail: what was found.
        remedy: what to do about it, unless all is well.
    """

    name: str
    status: CheckStatus
    detail: str
    remedy: str = ""
