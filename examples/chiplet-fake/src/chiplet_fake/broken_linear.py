"""A linear provider that computes what the reference does until its fault comes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import torch

from chiplet.api import (
    BuildContext,
    Feature,
    LinearImpl,
    LinearRequest,
    LinearWeights,
    Packed,
    Tier,
    Verdict,
    Yes,
)
from chiplet_fake.faults import Faults
from chiplet_fake.hardware import STREAM


class BrokenLayer:
    """One linear layer."""

    def __init__(self, faults: Faults, calls: Iterator[int], reference: LinearImpl) -> None:
        self._faults = faults
        self._calls = calls
        self._reference = reference

    def pack(self, weights: LinearWeights) -> Packed:
        """As the reference does."""
        return self._reference.pack(weights)

    def run(self, x: torch.Tensor, packed: Packed) -> torch.Tensor:
        """The product, or the fault."""
        result = self._reference.run(x, packed)
        if next(self._calls) < self._faults.at_call:
            return result
        match self._faults.run:
            case "wrong" | "late":
                return result + 1
            case "raise":
                raise RuntimeError("kernel fake-broken was told to fail")
            case "fault":
                STREAM.queue(_fail)
                return result
            case _:  # the fault lies elsewhere
                return result


class BrokenLinear:
    """Serves every linear layer; scored above the reference, so that it is chosen."""

    name = "fake-broken"
    accepts = frozenset(Feature)

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._calls = count(1)

    def assess(self, request: LinearRequest) -> Verdict:
        """Always yes, or the fault."""
        if self._faults.assess:
            raise RuntimeError("assess was told to fail")
        return Yes(Tier.GENERIC, "breaks on demand")

    def build(self, request: LinearRequest, context: BuildContext) -> BrokenLayer:
        """The reference's layer in a broken shell, or the fault."""
        if self._faults.build:
            raise RuntimeError("build was told to fail")
        return BrokenLayer(self._faults, self._calls, context.reference(request))


def _fail() -> None:
    raise RuntimeError("kernel fake-broken was told to break the device")
