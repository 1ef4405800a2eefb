"""EngineClient: the server's side of the engine; knows every answer that is being written."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from chiplet.errors import ChipletError, EngineError, QueueFull, RequestError
from chiplet.ipc.messages import (
    Abort,
    AddRequest,
    AnswerDelta,
    EngineReady,
    Refused,
    StepText,
    pack_token_ids,
)
from chiplet.ipc.sockets import Outbox
from chiplet.request import FinishReason, TokenIds
from chiplet.sampling_params import SamplingParams
from chiplet.server.answer_stream import AnswerStream
from chiplet.server.errors import EngineStarting
from chiplet.server.metrics import Metrics


@dataclass(frozen=True, slots=True)
class WantedAnswer:
    """One answer to ask the engine for.

    Attributes:
        prompt: `[num_prompt_tokens] int32`.
        sampling: `n` is 1.
        continues_prompt: the text goes on where the prompt's ends, as no chat's does.
    """

    prompt: TokenIds
    sampling: SamplingParams
    continues_prompt: bool


@dataclass(frozen=True, slots=True)
class EngineLink:
    """A generation that is ready."""

    outbox: Outbox
    ready: EngineReady


@dataclass(frozen=True, slots=True)
class _OpenAnswer:
    stream: AnswerStream
    index: int


class EngineClient:
    """Sends requests to the engine and deals out what comes back.

    Args:
        metrics: where times and finish reasons are counted.
        max_answers: answers that may be open at once, running and waiting together.
    """

    def __init__(self, metrics: Metrics, *, max_answers: int) -> None:
        self._metrics = metrics
        self._max_answers = max_answers
        self._link: EngineLink | None = None
        self._why_not: ChipletError = EngineStarting("The engine is starting; try again soon.")
        self._answers: dict[str, _OpenAnswer] = {}
        self._request_numbers = itertools.count()

    @property
    def num_open(self) -> int:
        """Answers that run or wait."""
        return len(self._answers)

    @property
    def is_ready(self) -> bool:
        """Requests are taken now."""
        return self._link is not None

    @property
    def engine(self) -> EngineReady:
        """Facts about the engine.

        Raises:
            EngineError: it is not ready.
        """
        return self._ready_link().ready

    def connect(self, link: EngineLink) -> None:
        """A generation is ready: take requests."""
        self._link = link

    def disconnect(self, error: EngineError) -> None:
        """The generation is gone: all open answers end with `error`, new ones are refused."""
        self._link = None
        self._why_not = error
        self._metrics.engine.forget_engine()
        for answer in list(self._answers.values()):
            answer.stream.fail(error)
            self._finish(answer, FinishReason.ERROR)

    def take_plan(self, plan: dict[str, Any]) -> None:
        """Other implementations serve from now on."""
        if self._link is not None:
            ready = msgspec.structs.replace(self._link.ready, plan=plan)
            self._link = EngineLink(self._link.outbox, ready)

    def open(self, wanted: Sequence[WantedAnswer]) -> AnswerStream:
        """Ask the engine for answers, all of one HTTP request.

        Raises:
            EngineError: the engine is not ready.
            QueueFull: too many answers are open.
            RequestError: more answers than the server ever holds.
        """
        outbox = self._ready_link().outbox
        self._check_room(len(wanted))
        number = next(self._request_numbers)
        request_ids = tuple(f"{number}.{index}" for index in range(len(wanted)))
        num_prompt_tokens = sum(len(each.prompt) for each in wanted)
        stream = AnswerStream(request_ids, num_prompt_tokens, self._abort)
        outbox.send(
            *(
                AddRequest(
                    request_id, pack_token_ids(each.prompt), each.sampling, each.continues_prompt
                )
                for request_id, each in zip(request_ids, wanted, strict=True)
            )
        )
        # Known only once they are on their way: what cannot be sent leaves nothing behind.
        for index, request_id in enumerate(request_ids):
            self._answers[request_id] = _OpenAnswer(stream, index)
        return stream

    def take_text(self, step: StepText) -> None:
        """Deal out what a step brought."""
        now_s = time.monotonic()
        for delta in step.deltas:
            answer = self._answers.get(delta.request_id)
            if answer is None:
                continue  # Aborted while this was on its way.
            self._observe(answer, delta, now_s)
            if delta.finish_reason is FinishReason.ERROR:
                self._fail(answer, EngineError(delta.error or "The engine failed."))
            else:
                answer.stream.push(answer.index, delta)

    def take_refusal(self, refused: Refused) -> None:
        """The engine does not take a request: all answers of its HTTP request end."""
        answer = self._answers.get(refused.request_id)
        if answer is None:
            return
        error: RequestError
        if refused.retry_after_s is not None:
            error = QueueFull(refused.message, retry_after_s=refused.retry_after_s)
        else:
            error = RequestError(refused.message, param=refused.param)
            error.code = refused.code
        self._fail(answer, error)

    def _ready_link(self) -> EngineLink:
        if self._link is None:
            raise self._why_not
        return self._link

    def _check_room(self, num_answers: int) -> None:
        if num_answers > self._max_answers:
            raise RequestError(
                f"The request asks for {num_answers} answers; this server holds "
                f"{self._max_answers} at once. Send fewer prompts or a smaller n.",
                param="n",
            )
        if len(self._answers) + num_answers > self._max_answers:
            raise QueueFull(
                f"{len(self._answers)} answers are running or waiting; this server holds "
                f"{self._max_answers} at once. Try again later."
            )

    def _observe(self, answer: _OpenAnswer, delta: AnswerDelta, now_s: float) -> None:
        stream = answer.stream
        progress = stream.progress[answer.index]
        num_new = delta.num_output_tokens - progress.num_output_tokens
        if progress.num_output_tokens == 0 and num_new > 0:
            progress.first_token_s = now_s
            self._metrics.first_token_s.observe(now_s - stream.started_s)
        elif num_new > 0:
            self._metrics.inter_token_s.observe((now_s - progress.last_token_s) / num_new)
        progress.num_cached_tokens = delta.num_cached_tokens
        progress.num_output_tokens = delta.num_output_tokens
        progress.last_token_s = now_s
        if delta.finish_reason is not None:
            self._finish(answer, delta.finish_reason)
            self._metrics.answer_s.observe(now_s - stream.started_s)

    def _finish(self, answer: _OpenAnswer, reason: FinishReason) -> None:
        del self._answers[answer.stream.request_ids[answer.index]]
        answer.stream.progress[answer.index].finish_reason = reason
        self._metrics.answers.labels(reason.value).inc()

    def _fail(self, answer: _OpenAnswer, error: ChipletError) -> None:
        """End a whole request because one of its answers failed."""
        request_id = answer.stream.request_ids[answer.index]
        if request_id in self._answers:
            self._finish(answer, FinishReason.ERROR)
        answer.stream.fail(error)
        self._abort(answer.stream)

    def _abort(self, stream: AnswerStream) -> None:
        unfinished = tuple(each for each in stream.request_ids if each in self._answers)
        for request_id in unfinished:
            self._finish(self._answers[request_id], FinishReason.ABORT)
        if unfinished and self._link is not None:
            self._link.outbox.send(Abort(unfinished))
