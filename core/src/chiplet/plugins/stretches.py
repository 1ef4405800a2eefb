"""Who runs the layers between two attentions in one call, if anybody offers that."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from chiplet.api import BuildContext, Op, Stretch, StretchProvider, StretchRequest
from chiplet.plugins.candidates import Candidate, operation_of
from chiplet.plugins.comparison import Judge
from chiplet.plugins.isolation import FAULTS

OPERATION = "linear/stretch"
"""What `--deny` calls it."""

_OPERATIONS = (f"ops/{Op.ADD_RMS_NORM}", f"ops/{Op.SILU_MUL}")

logger = logging.getLogger(__name__)


def offered(
    request: StretchRequest,
    *,
    candidates: Sequence[Candidate],
    context: BuildContext,
    pin_of: Callable[[str], str | None],
    denial_of: Callable[[str, str], str | None],
    judge: Judge | None,
) -> Stretch | None:
    """The first offer that computes what the layers do; None where a pin stands against it.

    Args:
        request: the layers, with their weights.
        candidates: providers of linear layers.
        context: for whoever builds.
        pin_of: the provider that the user chose for an operation.
        denial_of: why a provider must not serve an operation.
        judge: compares it with the layers; None to trust everybody.
    """
    operations = [*(operation_of(each.request) for each in request.products), *_OPERATIONS]
    pins = {pin for pin in map(pin_of, operations) if pin is not None}
    for candidate in candidates:
        name, provider = candidate.name, candidate.provider
        if not isinstance(provider, StretchProvider) or pins - {name}:
            continue
        if denial_of(OPERATION, name) is not None:
            continue
        try:
            found = provider.stretch(request, context)
            fault = judge.compare_stretch(request, found) if judge and found else ""
        except FAULTS as error:
            found, fault = None, f"{type(error).__name__}: {error}"
        if fault:
            logger.warning("%s: provider %s is not used; %s", OPERATION, name, fault)
        elif found is not None:
            return found
    return None
