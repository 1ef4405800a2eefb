"""Dispatch: one implementation made of several, each for calls of some sizes.

A call looks its number of tokens up in a table of two or three rows and goes on to an ordinary
bound function. Where the step is captured or compiled, the number is a constant of its bucket, and
the table is gone from the program.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from chiplet.api import OpImpl
from chiplet.layers.gated import GatedRun, gated_run, run_then_gate

Row = tuple[int, Callable[..., Any], int]
"""Most tokens, what to call, and which packed weights."""


class SizedLinear:
    """A linear layer whose small calls go to other implementations than its large ones.

    Weights are packed once for each implementation: the table costs their memory.
    """

    def __init__(self, rows: Sequence[tuple[int | None, Any]]) -> None:
        """Take implementations with the most tokens that each serves; the last takes the rest."""
        self._impls = [impl for _, impl in rows]
        self._rows: list[Row] = [
            (most, impl.run, index) for index, (most, impl) in enumerate(rows) if most is not None
        ]
        self._last = self._impls[-1].run
        if hasattr(self._impls[0], "rows"):
            first = self._impls[0].rows
            self.rows: Callable[[Any, tuple[Any, ...]], Any] = lambda row_ids, packed: first(
                row_ids, packed[0]
            )

    def pack(self, *weights: Any) -> tuple[Any, ...]:
        """The weights in every implementation's own form."""
        return tuple(impl.pack(*weights) for impl in self._impls)

    def run(self, x: Any, packed: tuple[Any, ...]) -> Any:
        """The product; see `chiplet.api.LinearImpl.run`."""
        num_tokens = x.shape[0]
        for most, run, index in self._rows:
            if num_tokens <= most:
                return run(x, packed[index])
        return self._last(x, packed[-1])

    def at(self, num_tokens: int, packed: tuple[Any, ...]) -> tuple[Any, Any]:
        """What serves so many tokens, and its packed weights."""
        sizes = (index for most, _, index in self._rows if num_tokens <= most)
        index = next(sizes, len(self._impls) - 1)
        return self._impls[index], packed[index]

    def gated_run(self, silu_mul: OpImpl) -> GatedRun | None:
        """The table of gated calls; None if all would be a product and the operation."""
        found = [gated_run(impl, silu_mul) for impl in self._impls]
        if not any(found):
            return None
        pairs = zip(self._impls, found, strict=True)
        runs = [run or run_then_gate(impl, silu_mul) for impl, run in pairs]
        rows = [(most, runs[index], index) for most, _, index in self._rows]
        last = runs[-1]

        def run_by_size(x: Any, packed: tuple[Any, ...]) -> Any:
            num_tokens = x.shape[0]
            for most, run, index in rows:
                if num_tokens <= most:
                    return run(x, packed[index])
            return last(x, packed[-1])

        return run_by_size


def sized_op(rows: Sequence[tuple[int | None, Callable[..., Any]]]) -> Callable[..., Any]:
    """An operation whose small calls go to other functions than its large ones."""
    limited = [(most, run) for most, run in rows if most is not None]
    last = rows[-1][1]

    def run_sized(first: Any, *rest: Any) -> Any:
        num_tokens = first.shape[0]
        for most, run in limited:
            if num_tokens <= most:
                return run(first, *rest)
        return last(first, *rest)

    return run_sized
