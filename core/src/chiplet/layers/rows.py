"""Which tokens' hidden states a layer goes on with, once all of them have been attended to."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Rows = Callable[[Tensor], Tensor]
"""Rows of a tensor `[num_tokens, ...]`, in the order in which they are wanted."""


def every_row(x: Tensor) -> Tensor:
    """All of them."""
    return x
