"""AnswerStream: the answers to one HTTP request, as they arrive."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from chiplet.errors import ChipletError
from chiplet.ipc.messages import AnswerDelta
from chiplet.request import FinishReason


@dataclass(slots=True)
class AnswerProgress:
    """How far one answer has come."""

    num_cached_tokens: int = 0
    num_output_tokens: int = 0
    first_token_s: float | None = None
    last_token_s: float = 0.0
    finish_reason: FinishReason | None = None


@dataclass(slots=True, eq=False)
class AnswerStream:
    """The answers to one HTTP request; made and fed by `EngineClient`, read by one route.

    Attributes:
        request_ids: of the answers, in the order of their index.
        num_prompt_tokens: of all prompts together, each answer's counted.
        on_close: called once, when the reader leaves before the end.
        started_s: monotonic clock at the request's arrival.
    """

    request_ids: tuple[str, ...]
    num_prompt_tokens: int
    on_close: Callable[[AnswerStream], None]
    started_s: float = field(default_factory=time.monotonic)
    progress: list[AnswerProgress] = field(init=False)
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)
    _batch: list[tuple[int, AnswerDelta]] = field(default_factory=list[tuple[int, AnswerDelta]])
    _num_open: int = field(init=False)
    _error: ChipletError | None = None

    def __post_init__(self) -> None:
        self.progress = [AnswerProgress() for _ in self.request_ids]
        self._num_open = len(self.request_ids)

    @property
    def is_over(self) -> bool:
        """All answers ended, or an error ended them."""
        return self._num_open == 0 or self._error is not None

    def push(self, index: int, delta: AnswerDelta) -> None:
        """Take what a step brought to answer `index`."""
        if delta.finish_reason is not None:
            self._num_open -= 1
        self._batch.append((index, delta))
        self._arrived.set()

    def fail(self, error: ChipletError) -> None:
        """End all answers with an error."""
        self._error = error
        self._arrived.set()

    def close(self, error: ChipletError) -> None:
        """The reader leaves: what is unfinished is aborted, whoever still reads gets `error`."""
        if not self.is_over:
            self.fail(error)
            self.on_close(self)

    async def next(self) -> list[tuple[int, AnswerDelta]]:
        """All that arrived since the last call, at least one delta; empty at the end.

        Raises:
            ChipletError: the engine or the client is gone, or the engine refused the request.
        """
        while not self._batch:
            if self._error is not None:
                raise self._error
            if self._num_open == 0:
                return []
            self._arrived.clear()
            await self._arrived.wait()
        batch, self._batch = self._batch, []
        return batch

    def describe(self) -> str:
        """One line for the log: tokens, times and ends."""
        parts = [
            f"prompt={self.num_prompt_tokens}",
            f"cached={sum(each.num_cached_tokens for each in self.progress)}",
            f"output={sum(each.num_output_tokens for each in self.progress)}",
            f"finish={','.join(each.finish_reason or 'open' for each in self.progress)}",
        ]
        firsts_s = [each.first_token_s for each in self.progress if each.first_token_s is not None]
        if firsts_s:
            parts.append(f"first_token={min(firsts_s) - self.started_s:.3f} s")
        return " ".join(parts)
