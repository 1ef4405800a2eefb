"""Snapshot: what is supported, kept in a file, so that a later run can tell what was lost."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from chiplet.errors import ConfigError
from chiplet.testing.conformance.case import Case, Outcome, Status, Subject
from chiplet.testing.conformance.verdict import refusal


def supported(outcomes: Iterable[Outcome]) -> set[str]:
    """What was served, whether rightly or not, as 'provider: request'."""
    served = (Status.PASSED, Status.FAILED)
    return {_key(each) for each in outcomes if each.case.request and each.status in served}


def promised(cases: Iterable[Case], subjects: Sequence[Subject]) -> set[str]:
    """What providers say that they serve, as 'provider: request'; nothing is run.

    Raises:
        AssertionError: a provider refuses without a reason, or is not sure.
    """
    asked = {(each.family, each.request): each.asked for each in cases if each.asked is not None}
    return {
        f"{subject.name}: {words}"
        for (family, words), request in asked.items()
        for subject in subjects
        if subject.family == family and refusal(subject.provider, request) is None
    }


def lost(path: Path, outcomes: Sequence[Outcome], *, provider: str | None) -> list[str]:
    """What a snapshot has and a run has not.

    What the run did not ask for (the quick tier asks less) is not lost; a provider that is gone
    is, with all it had, unless the run was limited to another one.

    Raises:
        ConfigError: the file cannot be read.
    """
    before = _read(path)
    asked = {_key(each) for each in outcomes if each.case.request}
    providers = {each.subject.name for each in outcomes}
    now = supported(outcomes)
    return sorted(
        key
        for key in before - now
        if key in asked
        or (key.partition(":")[0] not in providers and provider in (None, key.partition(":")[0]))
    )


def write(path: Path, outcomes: Iterable[Outcome]) -> None:
    """Write what was served.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        path.write_text(json.dumps(sorted(supported(outcomes)), indent=1) + "\n", "utf-8")
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written: {error.strerror}.",
            remedy="Give a file in a folder that exists.",
        ) from None


def _key(outcome: Outcome) -> str:
    return f"{outcome.subject.name}: {outcome.case.request}"


def _read(path: Path) -> set[str]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--snapshot {path} cannot be read: {error}.",
            remedy="Write it with --update-snapshot.",
        ) from None
    if not isinstance(found, list):
        raise ConfigError(
            f"--snapshot {path} is no list.", remedy="Write it anew with --update-snapshot."
        )
    return set(map(str, found))
