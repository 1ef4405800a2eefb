"""Agreement: rank 0 chooses, and all ranks know that they chose alike before weights are packed.

Communicators are not connected yet: a rank with another plan would wait for ever in its first
collective. The ranks talk over a `Meeting`, which any means of exchanging a few bytes can be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import msgspec

from chiplet.api import CommunicationRequest, Communicator
from chiplet.errors import ConfigError
from chiplet.plugins.plan_lock import LockedChoice, PlanFile, plan_file
from chiplet.plugins.selection import Selector

MadeT = TypeVar("MadeT")

_MAX_SHOWN = 3


class Meeting(Protocol):
    """How ranks talk before their communicators are connected.

    Attributes:
        rank: of this process among them.
    """

    rank: int

    def exchange(self, message: bytes) -> Sequence[bytes]:
        """What every rank gave, in the order of ranks. Blocks until all have come.

        Raises:
            TimeoutError: a rank did not come in time.
        """
        ...


class _Word(msgspec.Struct, frozen=True):
    """What a rank says.

    Attributes:
        plan: its choices, once it has made them.
        failure: why it cannot make them.
        fault: what is wrong with the collectives that it connected.
    """

    plan: PlanFile | None = None
    failure: str = ""
    fault: str = ""


def choose_together(selector: Selector, meeting: Meeting, make: Callable[[], MadeT]) -> MadeT:
    """Make what asks the selector, on rank 0 first, and have all others choose as it did.

    Args:
        selector: has answered nothing yet.
        meeting: with the other ranks; all of them call this.
        make: asks for everything that is ever asked for.

    Raises:
        ConfigError: some rank cannot choose, chose otherwise, or did not come; on every rank.
    """
    if meeting.rank == 0:
        made, word = _try(selector, make)
        _hear(meeting, word)
    else:
        first = _hear(meeting, _Word())[0]
        assert first.plan is not None
        selector.follow(first.plan, "rank 0")
        made, word = _try(selector, make)
    words = _hear(meeting, word)
    _compare([each.plan for each in words if each.plan is not None])
    assert made is not None
    return made


def connect_together(
    selector: Selector,
    request: CommunicationRequest,
    meeting: Meeting,
    fault_of: Callable[[Communicator], str],
) -> Communicator:
    """Collectives that every rank has connected and found right.

    A provider that cannot connect, or that one rank finds wrong, is done without on all of them.

    Args:
        selector: its choices agree with those of all ranks.
        request: the group; every rank of the meeting is in it.
        meeting: of the same ranks; all of them call this.
        fault_of: compares the connected collectives with what they must give; see
            `chiplet.plugins.self_check.communication`.

    Raises:
        ConfigError: the provider is pinned, or nobody is left; on every rank.
    """
    while True:
        communicator = selector.communicator(request)
        answers = _hear(meeting, _Word(fault=_connected_fault(communicator, fault_of)))
        faults = [f"rank {rank}: {each.fault}" for rank, each in enumerate(answers) if each.fault]
        if not faults:
            return communicator
        communicator.close()
        failed = next(each for each in selector.bound if each.request == request)
        selector.demote(failed, f"self-check: {'; '.join(faults)}")


def _connected_fault(communicator: Communicator, fault_of: Callable[[Communicator], str]) -> str:
    try:
        communicator.connect()
    except Exception as error:
        return f"connect raised {type(error).__name__}: {error}"
    return fault_of(communicator)


def _try(selector: Selector, make: Callable[[], MadeT]) -> tuple[MadeT | None, _Word]:
    """What is made; or the failure, which the others must hear of before it is raised."""
    try:
        made = make()
        selector.check_plan_file()
    except ConfigError as error:
        return None, _Word(failure=str(error))
    return made, _Word(plan=plan_file(selector.plan()))


def _hear(meeting: Meeting, word: _Word) -> list[_Word]:
    try:
        answers = meeting.exchange(msgspec.json.encode(word))
    except TimeoutError as error:
        raise ConfigError(
            f"Rank {meeting.rank} waited for the others to choose implementations, and not all "
            "came.",
            remedy="Look for the first error in the logs of the other ranks.",
        ) from error
    words = [msgspec.json.decode(each, type=_Word) for each in answers]
    failures = [f"rank {rank}: {each.failure}" for rank, each in enumerate(words) if each.failure]
    if failures:
        raise ConfigError(
            f"Implementations cannot be chosen. {' '.join(failures)}",
            remedy="Give all ranks the same plugins, drivers and settings.",
        )
    return words


def _compare(plans: Sequence[PlanFile]) -> None:
    differing = [rank for rank, plan in enumerate(plans) if plan.hash != plans[0].hash]
    if not differing:
        return
    rank = differing[0]
    differences = _differences(plans[0], plans[rank])
    more = f"; and {len(differences) - _MAX_SHOWN} more" if len(differences) > _MAX_SHOWN else ""
    raise ConfigError(
        f"Ranks {', '.join(map(str, differing))} chose other implementations than rank 0: rank "
        f"{rank}: {'; '.join(differences[:_MAX_SHOWN])}{more}.",
        remedy="Give all ranks the same plugins, drivers and settings.",
    )


def _differences(one: PlanFile, other: PlanFile) -> list[str]:
    head, head_other = (
        (each.device, each.platform, each.platform_version) for each in (one, other)
    )
    found = [] if head == head_other else [f"runs on {head_other}, rank 0 on {head}"]
    mine = {each.key: each for each in other.choices}
    for choice in one.choices:
        here = mine.pop(choice.key, None)
        if here is None:
            found.append(f"does not ask for {choice.operation} ({choice.request})")
        elif here.servers != choice.servers:
            found.append(f"{choice.operation} by {_names(here)}, rank 0 by {_names(choice)}")
    found += [f"asks for {each.operation} ({each.request})" for each in mine.values()]
    return found


def _names(choice: LockedChoice) -> str:
    return ", ".join(f"{each.provider} {each.version}" for each in choice.servers)
