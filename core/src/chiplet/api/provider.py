"""What all providers have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from chiplet.api.features import Feature
from chiplet.api.platform import Platform
from chiplet.api.reference import Reference, no_reference
from chiplet.api.verdicts import Verdict

if TYPE_CHECKING:
    import torch

RequestT = TypeVar("RequestT", contravariant=True)
ImplT = TypeVar("ImplT", covariant=True)


@dataclass(frozen=True, slots=True)
class BuildContext:
    """What a provider may use to build an implementation.

    Attributes:
        platform: the active platform.
        reference: gives core's own implementation of a request, to lean on.
    """

    platform: Platform
    reference: Reference = no_reference

    @property
    def torch_device(self) -> torch.device:
        """Where tensors of the implementation go."""
        return self.platform.torch_device


class Provider(Protocol[RequestT, ImplT]):
    """Offers implementations of one family of operations.

    Attributes:
        name: the word that `--use` takes.
        accepts: features it has heard of and serves.
    """

    name: str
    accepts: frozenset[Feature]

    def assess(self, request: RequestT) -> Verdict:
        """Whether it serves the request, and how well. Pure, on the host, allocates nothing."""
        ...

    def build(self, request: RequestT, context: BuildContext) -> ImplT:
        """The implementation; called once per distinct request, after a Yes.

        Raises:
            Exception: the implementation cannot be made; the next candidate is taken.
        """
        ...
