"""Bindings: where a layer gets its implementation when it is made."""

from __future__ import annotations

from collections.abc import Callable
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
    Stretch,
    StretchRequest,
)

StretchFinder = Callable[[StretchRequest], Stretch | None]


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

    @property
    def stretch(self) -> StretchFinder:
        """Finds what runs between two attentions in one call, if somebody offers that."""
        ...

    def moe(self, request: MoeRequest) -> MoeImpl:
        """The implementation that serves a mixture of experts."""
        ...

    def op(self, request: OpRequest) -> OpImpl:
        """The callable that serves an operation."""
        ...
