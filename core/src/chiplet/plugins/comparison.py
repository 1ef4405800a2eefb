"""Comparison: what was built for a request, against the reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from chiplet.api import (
    AttentionRequest,
    BuildContext,
    LinearRequest,
    MoeRequest,
    No,
    Numerics,
    OpRequest,
    Stretch,
    StretchRequest,
    Verdict,
    Yes,
)
from chiplet.plugins.candidates import Candidate, Request, operation_of
from chiplet.plugins.patience import patience

CheckedRequest = AttentionRequest | LinearRequest | MoeRequest | OpRequest
"""What a judge can compare alone. Collectives are compared once all ranks are connected, see
`chiplet.plugins.agreement`; a compiler's work is what all others are compared by."""


class Judge(Protocol):
    """Compares an implementation with the reference; see `chiplet.plugins.self_check`."""

    def checkable(self, request: CheckedRequest) -> CheckedRequest:
        """What is compared in a request's place: itself, or a part if it is too large."""
        ...

    def compare(
        self, request: CheckedRequest, impl: Any, reference: Any, numerics: Numerics
    ) -> str:
        """What is wrong with the implementation, or an empty text. Never raises."""
        ...

    def compare_stretch(self, request: StretchRequest, stretch: Stretch) -> str:
        """What is wrong with a stretch beside its layers, or an empty text."""
        ...


class Built(NamedTuple):
    """What a provider built for a request, and its verdict before."""

    request: Request
    candidate: Candidate
    verdict: Verdict
    impl: Any


@dataclass(frozen=True, slots=True)
class Compared:
    """An implementation that has been compared.

    Attributes:
        fault: what is wrong with it, or an empty text.
        outcome: of the comparison, in a word; empty if there is a fault.
    """

    impl: Any
    fault: str
    outcome: str


@dataclass(frozen=True, slots=True)
class Comparer:
    """Compares what can be compared.

    Attributes:
        judge: None to trust everybody.
        context: what parts too large to be compared are built with.
    """

    judge: Judge | None
    context: BuildContext

    def compare(self, built: Built) -> Compared:
        """The outcome. Raises whatever the provider raises when it builds a part."""
        request, candidate, verdict, impl = built
        if candidate.plugin.is_core:
            return Compared(impl, "", "is the reference")
        if self.judge is None or not isinstance(request, CheckedRequest):
            return Compared(impl, "", "not run")
        checked, part = impl, self.judge.checkable(request)
        if part != request:
            verdict = candidate.assess(part)
            if isinstance(verdict, No):
                return Compared(impl, "", "not run, too large")
            checked = candidate.build(part, self.context)
        numerics = verdict.numerics if isinstance(verdict, Yes) else Numerics.EXACT
        reference = self.context.reference(part)
        with patience(f"the self-check of provider {candidate.name} for {operation_of(request)}"):
            fault = self.judge.compare(part, checked, reference, numerics)
        outcome = "equal" if part == request else "equal in a part"
        return Compared(impl, fault, "" if fault else outcome)
