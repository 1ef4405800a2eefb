"""Whether a provider serves a request; a refusal must be an honest one."""

from __future__ import annotations

from typing import Any

from chiplet.api import AttentionRequest, LinearRequest, MoeRequest, No, OpRequest, Provider


def is_served(
    provider: Provider[Any, Any], request: AttentionRequest | LinearRequest | MoeRequest | OpRequest
) -> bool:
    """Whether features and verdict allow the request.

    Raises:
        AssertionError: the provider refuses without a reason, or answers differently when asked
            again.
    """
    if request.features - provider.accepts:
        return False
    verdict = provider.assess(request)
    assert verdict == provider.assess(request), f"{provider.name}: assess is not pure"
    if isinstance(verdict, No):
        assert all(reason.code and reason.text for reason in verdict.reasons), (
            f"{provider.name} refuses {request} without a reason"
        )
        return False
    return True
