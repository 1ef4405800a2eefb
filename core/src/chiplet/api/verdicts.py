"""Verdicts: a provider's answer to one request for a capability."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, StrEnum


class Tier(IntEnum):
    """How good a provider is at what it does; a verdict's score starts from one of these."""

    REFERENCE = 0
    GENERIC = 100
    VENDOR = 200
    TUNED = 300


class Numerics(StrEnum):
    """What an implementation computes beside the formula; 'chiplet explain' says it."""

    EXACT = "exact"
    """The formula, with no other rounding than that of the request's types."""
    INT8_ACTIVATIONS = "int8 activations"
    """Linear: activations are rounded to eight bits, in groups of at most 32 with a scale each."""


class Part(StrEnum):
    """What part of the steps an attention provider's verdict speaks for."""

    ALL = "all"
    """Everything."""
    PROMPTS = "prompts"
    """Requests behind the first `num_decodes`, where `ForwardBatch.lengths_host` is there. All else
    goes to another provider that works on one of the same layouts.

    `plan` then gets a batch of these requests, `num_decodes` being 0, in which the tokens of the
    others come first: `query_starts[0]` of them. `run` gets all tokens, may write the keys and
    values of all, and may return anything for those of the others. The implementation must compute
    every other batch with lengths on the host all the same."""


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a provider refuses.

    Attributes:
        code: a stable word, like 'dtype'.
        text: the value and what was allowed.
        hint: what would change it, if anything.
    """

    code: str
    text: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Yes:
    """The provider serves the request.

    Attributes:
        score: the highest wins; see `Tier`.
        note: a few words for `chiplet explain`.
        max_tokens: the score speaks for calls of at most so many tokens (rows of the first
            argument), and another provider is asked for larger ones. The implementation must
            compute larger calls all the same. None for all calls; linear layers and operations
            only.
        numerics: what it computes beside the formula.
        estimate_us: what a call takes in the provider's own opinion, in microseconds, by number
            of tokens; autotune does not measure who expects to be several times slower than
            another. None if it has no opinion.
        part: the score speaks for this part of the steps; attention only.
    """

    score: int
    note: str = ""
    max_tokens: int | None = None
    numerics: Numerics = Numerics.EXACT
    estimate_us: Mapping[int, float] | None = None
    part: Part = Part.ALL

    def __post_init__(self) -> None:
        assert self.max_tokens is None or self.max_tokens >= 1, "max_tokens is 1 or more, or None"
        assert all(each > 0 for each in (self.estimate_us or {}).values()), "times are positive"


@dataclass(frozen=True, slots=True)
class No:
    """The provider refuses the request.

    Attributes:
        reasons: at least one.
    """

    reasons: tuple[Reason, ...]

    def __post_init__(self) -> None:
        assert self.reasons, "a refusal carries at least one Reason"

    @classmethod
    def because(cls, code: str, text: str, hint: str = "") -> No:
        """A refusal with one reason."""
        return cls((Reason(code, text, hint),))


Verdict = Yes | No
