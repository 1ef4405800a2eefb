"""Reference: core's own implementation of any request, for plugins to lean on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn, Protocol, overload

if TYPE_CHECKING:
    from chiplet.api.attention import AttentionImpl, AttentionRequest
    from chiplet.api.communication import CommunicationRequest, Communicator
    from chiplet.api.linear import LinearImpl, LinearRequest
    from chiplet.api.moe import MoeImpl, MoeRequest
    from chiplet.api.ops import OpImpl, OpRequest


class Reference(Protocol):
    """Gives core's own implementation of a request: correct on any device of torch, and slow.

    A provider may hand it out as it is, wrap it, or call it for the cases that its own kernel does
    not cover.
    """

    @overload
    def __call__(self, request: AttentionRequest, /) -> AttentionImpl: ...
    @overload
    def __call__(self, request: LinearRequest, /) -> LinearImpl: ...
    @overload
    def __call__(self, request: MoeRequest, /) -> MoeImpl: ...
    @overload
    def __call__(self, request: CommunicationRequest, /) -> Communicator: ...
    @overload
    def __call__(self, request: OpRequest, /) -> OpImpl: ...
    def __call__(self, request: Any, /) -> Any:
        """The implementation; a new one each time."""
        ...


def no_reference(request: Any, /) -> NoReturn:
    """Stands in a context that was made by hand.

    Raises:
        LookupError: always, with what to do.
    """
    raise LookupError(
        f"this BuildContext has no reference for {request}: pass reference=..., or take the "
        "context that core or chiplet.testing makes"
    )
