"""PlanLock: a selection plan saved in a file, which a later start repeats or refuses to start.

The file is JSON, made to be read and put under version control: each choice with its request, and
who serves it in which version.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from chiplet.api import No, Part, Yes
from chiplet.errors import ConfigError
from chiplet.plugins.contest import Contest, Seat
from chiplet.plugins.plan import SelectionPlan
from chiplet.version import __version__

FORMAT = 1
"""Of the file; another number is refused."""

_MAKE_ANEW = "Make it anew with 'chiplet explain MODEL --save FILE', or leave --plan-lock out."


class LockedServer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who serves calls of some sizes; see `chiplet.plugins.plan.Server`."""

    provider: str
    distribution: str
    version: str
    max_tokens: int | None = None
    part: Part = Part.ALL


class LockedChoice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who serves one request."""

    operation: str
    request: str
    key: str
    servers: list[LockedServer]


class PlanFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file.

    Attributes:
        plan_lock: number of the format.
        chiplet: version that wrote it, for people.
        device: type of the device.
    """

    plan_lock: int
    chiplet: str
    hash: str
    device: str
    platform: str
    platform_version: str
    choices: list[LockedChoice]


def plan_file(plan: SelectionPlan) -> PlanFile:
    """A plan as a file holds it."""
    return PlanFile(
        plan_lock=FORMAT,
        chiplet=__version__,
        hash=plan.hash,
        device=plan.device.partition(":")[0],
        platform=plan.platform,
        platform_version=plan.platform_version,
        choices=[
            LockedChoice(
                each.operation,
                each.request,
                each.key,
                [
                    LockedServer(s.provider, s.distribution, s.version, s.max_tokens, s.part)
                    for s in each.servers
                ],
            )
            for each in plan.choices
        ],
    )


def save_plan(plan: SelectionPlan, path: Path) -> None:
    """Write a plan to a file that `--plan-lock` takes.

    Raises:
        ConfigError: the file cannot be written.
    """
    content = plan_file(plan)
    try:
        path.write_text(json.dumps(msgspec.to_builtins(content), indent=2) + "\n", "utf-8")
    except OSError as error:
        raise ConfigError(
            f"The plan cannot be written to {path}: {error.strerror or error}.",
            remedy="Name a file in a folder that exists and may be written to.",
        ) from error


def read_plan(path: Path) -> PlanFile:
    """The plan in a file.

    Raises:
        ConfigError: it cannot be read, or is no plan of this format.
    """
    try:
        content = msgspec.json.decode(path.read_bytes(), type=PlanFile)
    except OSError as error:
        raise ConfigError(
            f"Plan file {path} cannot be read: {error.strerror or error}.", remedy=_MAKE_ANEW
        ) from error
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path} is no plan file: {error}.", remedy=_MAKE_ANEW) from error
    if content.plan_lock != FORMAT:
        raise ConfigError(
            f"Plan file {path} has format {content.plan_lock}; read is {FORMAT}.", remedy=_MAKE_ANEW
        )
    return content


@dataclass(slots=True)
class PlanLock:
    """A plan to be repeated; collects what cannot be.

    Attributes:
        name: for messages, like 'Plan file plan.lock'.
        remedy: what to do if it cannot be followed.
        choices: by the request's key.
        differences: one line for each thing that is not as the file says.
        used: keys of choices that were asked for.
    """

    name: str
    remedy: str
    choices: Mapping[str, LockedChoice]
    differences: list[str] = field(default_factory=list[str])
    used: set[str] = field(default_factory=set[str])

    @classmethod
    def open(cls, path: Path, here: Sequence[str]) -> PlanLock:
        """The lock in a file.

        Args:
            path: of the file.
            here: device type, platform distribution and its version of this start.

        Raises:
            ConfigError: the file is no plan.
        """
        return cls.of(read_plan(path), here, name=f"Plan file {path}", remedy=_MAKE_ANEW)

    @classmethod
    def of(cls, content: PlanFile, here: Sequence[str], *, name: str, remedy: str) -> PlanLock:
        """The lock of a plan that was read; see `open`."""
        lock = cls(name, remedy, {each.key: each for each in content.choices})
        there = (content.device, content.platform, content.platform_version)
        for name, wanted, found in zip(
            ("device", "platform plugin", "its version"), there, here, strict=True
        ):
            if wanted != found:
                lock.differences.append(f"{name}: file {wanted}, here {found}")
        return lock

    def seats(self, contest: Contest, key: str) -> tuple[Seat, ...]:
        """The table that the file says; empty if it cannot be, and the difference is noted."""
        self.used.add(key)
        locked = self.choices.get(key)
        if locked is None:
            self.differences.append(f"{contest.operation}: not in the file")
            return ()
        seats: list[Seat] = []
        for server in locked.servers:
            seat, difference = _seat(contest, server)
            if difference:
                self.differences.append(f"{contest.operation}: {difference}")
            if seat is None:
                return ()
            seats.append(seat)
        return tuple(seats)

    def check(self, *, is_complete: bool) -> None:
        """Refuse to go on where the file is not followed.

        Args:
            is_complete: everything has been asked for by now.

        Raises:
            ConfigError: with every difference.
        """
        found = list(dict.fromkeys(self.differences))
        if is_complete:
            found += [
                f"{each.operation}: asked for by nobody here ({each.request})"
                for key, each in self.choices.items()
                if key not in self.used
            ]
        if found:
            raise ConfigError(
                f"{self.name} cannot be followed: {'; '.join(found)}.", remedy=self.remedy
            )


def _seat(contest: Contest, server: LockedServer) -> tuple[Seat | None, str]:
    """The candidate that the file names, and what differs."""
    name = f"{server.provider} of {server.distribution} {server.version}"
    if contest.pin not in (None, server.provider):
        return None, f"file {name}, pinned is {contest.pin}"
    if server.provider not in contest.verdicts:
        return None, f"file {name}, which is not here"
    candidate, verdict = contest.verdicts[server.provider]
    plugin = candidate.plugin
    if (plugin.distribution, plugin.version) != (server.distribution, server.version):
        return None, f"file {name}, here of {plugin.distribution} {plugin.version}"
    if isinstance(verdict, No):
        is_denied = all(reason.code == "denied" for reason in verdict.reasons)
        reason = "; ".join(each.text for each in verdict.reasons)
        # What the user or a fault denies is denied whatever the file says.
        return None, "" if is_denied else f"file {name}, which refuses: {reason}"
    assert isinstance(verdict, Yes)
    if verdict.part is not server.part:
        return None, f"file {name} for {server.part}, which is for {verdict.part} here"
    return Seat(candidate, verdict, server.max_tokens), ""
