"""FakeEngine: an engine without a model, whose answers repeat their prompt."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from chiplet.config import EngineConfig
from chiplet.crash import InUse
from chiplet.errors import EngineError, ModelError, QueueFull
from chiplet.ipc.messages import EngineReady
from chiplet.request import FinishReason, Request, RequestLimits, RequestOutput, TokenLogprobs
from chiplet.scheduler.stats import SchedulerStats, Totals

BROKEN_MODEL_NAME = "broken"
"""An engine that serves under this name fails to start."""

ERROR_TOKEN_ID = 0
"""A prompt that begins with this token ends with an error."""

CRASH_TOKEN_ID = 1
"""A prompt that begins with this token makes the engine raise."""

HANG_TOKEN_ID = 2
"""A prompt that begins with this token makes the engine hang."""

FAULT_TOKEN_ID = 3
"""A prompt that begins with this token breaks the device, until `FAULTY` is denied."""

FAULTY = "attention/global=faulty"

RECOVER_TOKEN_ID = 4
"""A prompt that begins with this token ends with an error, from which the engine recovers."""

PAGE_SIZE = 16


@dataclass(frozen=True, slots=True)
class FakeNews:
    """Tells of a pretended recovery."""

    message: str
    plan: dict[str, Any]
    in_use: tuple[InUse, ...] = ()


@dataclass(slots=True)
class FakeEngine:
    """Answers each prompt with its own tokens, over and over; one token each step.

    An end token in the prompt ends the answer there. Prompts are cached like real ones: what a
    prompt has in common with an earlier one, in whole pages, is not computed again.

    Attributes:
        max_running: answers computed at once; more wait.
        max_waiting: answers that may wait; more are refused.
        step_s: how long a step takes.
        num_pages: pages it pretends to have.
        denied: what it does without, as `--deny` takes it.
    """

    max_running: int = 64
    max_waiting: int = 1024
    step_s: float = 0.0
    num_pages: int = 1024
    denied: tuple[str, ...] = ()
    _news: list[FakeNews] = field(default_factory=list[FakeNews])
    _waiting: list[Request] = field(default_factory=list[Request])
    _running: list[Request] = field(default_factory=list[Request])
    _outputs: list[RequestOutput] = field(default_factory=list[RequestOutput])
    _seen_prompts: set[bytes] = field(default_factory=set[bytes])
    _totals: Totals = field(default_factory=Totals)

    @property
    def has_work(self) -> bool:
        """Some request has not ended, or some output is not yet delivered."""
        return bool(self._waiting or self._running or self._outputs)

    def add(self, request: Request) -> None:
        """Take a request.

        Raises:
            QueueFull: too many wait.
        """
        if len(self._waiting) >= self.max_waiting:
            raise QueueFull(f"{len(self._waiting)} requests are waiting; try again later.")
        self._waiting.append(request)

    def abort(self, request_id: str) -> None:
        """End a request; unknown ones are ignored."""
        for queue in (self._waiting, self._running):
            for request in list(queue):
                if request.request_id == request_id:
                    queue.remove(request)
                    self._totals.finished += 1
                    self._totals.aborted += 1
                    self._outputs.append(_output(request, FinishReason.ABORT))

    def step(self) -> list[RequestOutput]:
        """One more token for each running request."""
        time.sleep(self.step_s)
        while self._waiting and len(self._running) < self.max_running:
            self._admit(self._waiting.pop(0))
        outputs, self._outputs = self._outputs, []
        for request in list(self._running):
            output = self._advance(request)
            outputs.append(output)
            if output.finish_reason is not None:
                self._totals.finished += 1
                self._running.remove(request)
        self._totals.steps += bool(self._running)
        return outputs

    def spare_s(self) -> float:
        """No time to wait: its steps take none."""
        return 0.0

    def take_news(self) -> list[FakeNews]:
        """Pretended recoveries since the last call."""
        news, self._news = self._news, []
        return news

    def stats(self) -> SchedulerStats:
        """Counts at this moment."""
        num_used = sum(-(-request.num_tokens // PAGE_SIZE) for request in self._running)
        return SchedulerStats(
            num_running=len(self._running),
            num_waiting=len(self._waiting),
            num_total_pages=self.num_pages,
            num_free_pages=self.num_pages - num_used,
            num_cached_pages=0,
            page_size=PAGE_SIZE,
            total_steps=self._totals.steps,
            total_prompt_tokens=self._totals.prompt_tokens,
            total_cached_tokens=self._totals.cached_tokens,
            total_computed_prompt_tokens=self._totals.computed_prompt_tokens,
            total_output_tokens=self._totals.output_tokens,
            total_retractions=0,
            total_evicted_pages=0,
            total_finished=self._totals.finished,
            total_aborted=self._totals.aborted,
        )

    def _admit(self, request: Request) -> None:
        prompt = request.prompt_token_ids
        pages = [prompt[:end].tobytes() for end in range(PAGE_SIZE, len(prompt), PAGE_SIZE)]
        request.num_cached_tokens = PAGE_SIZE * sum(page in self._seen_prompts for page in pages)
        self._seen_prompts.update(pages)
        self._totals.prompt_tokens += len(prompt)
        self._totals.cached_tokens += request.num_cached_tokens
        self._totals.computed_prompt_tokens += len(prompt) - request.num_cached_tokens
        self._running.append(request)

    def _advance(self, request: Request) -> RequestOutput:
        first = int(request.prompt_token_ids[0])
        if first == CRASH_TOKEN_ID:
            raise RuntimeError("The fake engine was asked to crash.")
        if first == HANG_TOKEN_ID:
            time.sleep(3600)
        if first == FAULT_TOKEN_ID and FAULTY not in self.denied:
            raise EngineError("The fake device was asked to break.", deny=(FAULTY,))
        if first == RECOVER_TOKEN_ID:
            message = "A fake provider raised; it is not used any more."
            self._news.append(FakeNews(message, {"operations": ["recovered"]}))
        if first in (ERROR_TOKEN_ID, RECOVER_TOKEN_ID):
            return _output(request, FinishReason.ERROR, error="The fake engine was asked to fail.")
        position = len(request.output_token_ids) % request.num_prompt_tokens
        token_id = int(request.prompt_token_ids[position])
        request.output_token_ids.append(token_id)
        self._totals.output_tokens += 1
        is_end = token_id in request.end_token_ids
        is_full = len(request.output_token_ids) == request.max_output_tokens
        reason = FinishReason.STOP if is_end else FinishReason.LENGTH if is_full else None
        return _output(request, reason, token_id=token_id)


def start_fake_engine(config: EngineConfig) -> tuple[FakeEngine, EngineReady]:
    """A fake engine and what a server must know of it.

    Raises:
        ModelError: the served name is `BROKEN_MODEL_NAME`.
    """
    name = config.model.served_model_name or "fake"
    if name == BROKEN_MODEL_NAME:
        raise ModelError("The fake model is broken.", remedy="Serve it under another name.")
    engine = FakeEngine(
        max_running=config.schedule.max_running_requests,
        max_waiting=config.schedule.max_running_requests + config.schedule.max_queued_requests,
        step_s=0.002,
        denied=config.device.deny,
    )
    limits = RequestLimits(
        context_length=config.model.context_length or 4096,
        max_total_tokens=engine.num_pages * PAGE_SIZE,
        vocab_size=259,
        eos_token_ids=(258,),
    )
    ready = EngineReady(
        model_name=name,
        device="fake:0 (pretended)",
        dtype="float32",
        limits=limits,
        banner=("A fake engine: answers repeat their prompts.",),
        plan={"operations": [], "denied": list(config.device.deny)},
    )
    return engine, ready


def _output(
    request: Request,
    reason: FinishReason | None,
    *,
    token_id: int | None = None,
    error: str | None = None,
) -> RequestOutput:
    sampling = request.sampling
    token_ids = () if token_id is None else (token_id,)
    logprobs = prompt_logprobs = None
    if sampling.logprobs is not None:
        logprobs = tuple(_logprobs(each, sampling.logprobs) for each in token_ids)
    if sampling.prompt_logprobs is not None and len(request.output_token_ids) == 1:
        prompt = request.prompt_token_ids[1:].tolist()
        prompt_logprobs = tuple(_logprobs(each, sampling.prompt_logprobs) for each in prompt)
    return RequestOutput(
        request_id=request.request_id,
        token_ids=token_ids,
        num_prompt_tokens=request.num_prompt_tokens,
        num_cached_tokens=request.num_cached_tokens,
        num_output_tokens=len(request.output_token_ids),
        finish_reason=reason,
        stop_token_id=token_id if reason is FinishReason.STOP else None,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        error=error,
    )


def _logprobs(token_id: int, num_top: int) -> TokenLogprobs:
    """The token itself comes first, the next ones of the vocabulary follow."""
    tops = range(num_top)
    return TokenLogprobs(
        token_id=token_id,
        logprob=-0.5,
        top_token_ids=tuple(token_id + each for each in tops),
        top_logprobs=tuple(-0.5 - each for each in tops),
    )
