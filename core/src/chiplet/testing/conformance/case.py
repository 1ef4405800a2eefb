"""Case, Subject, Outcome: what is checked, of whom, and how it went."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from chiplet.api import BuildContext, Provider
from chiplet.testing.conformance.engines import EngineMaker
from chiplet.testing.conformance.verdict import Request, refusal


class Status(StrEnum):
    """How a case ended."""

    PASSED = "passed"
    FAILED = "failed"
    REFUSED = "refused"
    SKIPPED = "skipped"


class Refused(Exception):
    """The provider refuses what the case asks for; the text is its reasons."""


class Skipped(Exception):
    """The case cannot run here; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Who is checked.

    Attributes:
        family: 'attention', 'linear', 'ops', 'quantization', 'platform', 'package' and so on.
        name: the word that `--use` takes; of a platform or package, its own name.
        distribution: where it comes from.
        version: of that distribution.
        target: the provider; or the platform, or the folder of the package.
        context: where it runs.
        engines: starts engines in which it may be pinned; None where it stands alone.
    """

    family: str
    name: str
    distribution: str
    version: str
    target: Any
    context: BuildContext
    engines: EngineMaker | None = None

    @property
    def provider(self) -> Provider[Any, Any]:
        """The target of a subject whose family has requests."""
        return self.target


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One thing that is checked.

    Attributes:
        family: of the subjects that it is for.
        operation: row of the report, like 'attention' or 'ops/rotary'.
        dtype: column of the report; empty if it has none.
        feature: what goes beyond the plain case, like 'window' or 'page permutation'.
        name: what is particular to it; unique within family, operation, dtype and feature.
        request: what is asked, in a few words, for the support snapshot; empty if nothing is.
        asked: the request itself, where one provider can say by itself whether it serves it.
        is_quick: belongs to the quick tier.
        check: raises AssertionError, Refused or Skipped.
    """

    family: str
    operation: str
    dtype: str = ""
    feature: str = "plain"
    name: str
    request: str = ""
    asked: Request | None = None
    is_quick: bool = False
    check: Callable[[Subject], None]

    @property
    def id(self) -> str:
        """Unique name, as in pytest's list."""
        parts = (self.operation, self.dtype, self.feature, self.name)
        return "-".join(part.replace(" ", "_") for part in parts if part)

    def matches(self, text: str) -> bool:
        """Whether its name has the text, with spaces or with the underscores of its id."""
        return text.lower().replace(" ", "_") in self.id.lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one case went with one subject.

    Attributes:
        detail: what was wrong, why it was refused or skipped; empty if it passed.
    """

    case: Case
    subject: Subject
    status: Status
    detail: str
    seconds: float


def run_case(case: Case, subject: Subject) -> Outcome:
    """Run a case; whatever an implementation raises is a failure of that implementation."""
    start = time.perf_counter()
    status, detail = Status.PASSED, ""
    try:
        case.check(subject)
    except Refused as refused:
        status, detail = Status.REFUSED, str(refused)
    except Skipped as skipped:
        status, detail = Status.SKIPPED, str(skipped)
    except AssertionError as error:
        status, detail = Status.FAILED, str(error) or _last_line(error)
    except Exception as error:
        status = Status.FAILED
        detail = f"raised {type(error).__name__}: {error} ({_last_line(error)})"
    return Outcome(
        case=case,
        subject=subject,
        status=status,
        detail=detail,
        seconds=time.perf_counter() - start,
    )


def require_served(subject: Subject, request: Request) -> None:
    """Go on only if the subject serves the request.

    Raises:
        Refused: it does not, with its reasons.
        AssertionError: it refuses without a reason, or its answers differ.
    """
    reasons = refusal(subject.provider, request)
    if reasons is not None:
        raise Refused(reasons)


def _last_line(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}" if frames else ""
