"""Whether a provider serves a request; a refusal must be an honest one."""

from __future__ import annotations

from typing import Any

from chiplet.api import (
    AttentionRequest,
    CommunicationRequest,
    LinearRequest,
    MoeRequest,
    No,
    OpRequest,
    Provider,
    Yes,
)

Request = AttentionRequest | LinearRequest | MoeRequest | OpRequest | CommunicationRequest


def is_served(provider: Provider[Any, Any], request: Request) -> bool:
    """Whether features and verdict allow the request.

    Raises:
        AssertionError: as `refusal` does.
    """
    return refusal(provider, request) is None


def refusal(provider: Provider[Any, Any], request: Request) -> str | None:
    """Why a provider does not serve a request; None if it does.

    Raises:
        AssertionError: it refuses without a reason, answers differently when asked again, or
            answers with something that is no verdict.
    """
    unheard = sorted(request.features - provider.accepts)
    if unheard:
        return ", ".join(f"feature '{feature}' not accepted" for feature in unheard)
    verdict = provider.assess(request)
    assert verdict == provider.assess(request), f"{provider.name}: assess is not pure"
    if isinstance(verdict, Yes):
        return None
    assert isinstance(verdict, No), f"{provider.name}: assess returned {verdict!r}, no verdict"
    assert verdict.reasons, f"{provider.name} refuses {request} without a reason"
    assert all(reason.code and reason.text for reason in verdict.reasons), (
        f"{provider.name} refuses {request} without a reason"
    )
    return "; ".join(reason.text for reason in verdict.reasons)
