"""Bindings: where a layer gets its implementation when it is made."""

from __future__ import annotations

from typing import Protocol

from chiplet.api import (
    AttentionImpl,
    AttentionRequest,
    LinearImpl,
    LinearRequest,
    MoeImpl,
    MoeRequest,
    OpImpl,
    OpRequest,
)


class Bindings(Protocol):
    """Answers each request with one implementation, chosen once; refuses after it is sealed."""

    def attention(self, request: AttentionRequest) -> AttentionImpl:
        """The implementation that serves a group of layers."""
        ...

    def linear(self, request: LinearRequest) -> LinearImpl:
        """The implementation that serves a linear layer."""
        ...

    def serves(self, request: LinearRequest) -> bool:
        """Whether somebody would serve a linear layer better than the reference does."""
        ...

    def moe(self, request: MoeRequest) -> MoeImpl:
        """The implementation that serves a mixture of experts."""
        ...

    def op(self, request: OpRequest) -> OpImpl:
        """The callable that serves an operation."""
        ...
