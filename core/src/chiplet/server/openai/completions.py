"""`POST /v1/completions`: prompts in, their continuations out."""

from __future__ import annotations

import codecs
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from fastapi import Request
from msgspec import UNSET, UnsetType
from starlette.responses import Response

from chiplet.ipc.messages import AnswerDelta, EngineReady, TokenText
from chiplet.request import TokenIds
from chiplet.sampling_params import SamplingParams
from chiplet.server.generation import Job, respond
from chiplet.server.openai.answers import Completion, CompletionChoice, CompletionLogprobs, Usage
from chiplet.server.openai.bodies import CompletionBody
from chiplet.server.openai.wording import finish_word, finite
from chiplet.server.service import Service, wanted_answers


async def completions(service: Service, request: Request, body: CompletionBody) -> Response:
    """Continuations of prompts.

    Raises:
        ChipletError: the request cannot be served.
    """
    engine = service.engine_for(body.model)
    prompts = [await _prompt(service, engine, each) for each in body.prompts()]
    sampling = _fitted(body, engine, prompts)
    wanted = wanted_answers(engine, prompts, sampling, continues_prompt=True)
    shape = CompletionShape(
        model=engine.model_name,
        has_logprobs=body.logprobs is not None,
        has_usage=body.wants_usage_chunk,
        is_prompt_only=body.max_tokens == 0,
        echoes=_echoes(service, body, prompts),
    )
    job = Job(wanted, sampling.n, shape, body.stream, is_prompt_only=body.max_tokens == 0)
    return await respond(service.client, request, job)


async def _prompt(service: Service, engine: EngineReady, prompt: str | list[int]) -> TokenIds:
    if isinstance(prompt, str):
        return await service.encode_prompt(prompt, engine.limits, add_special_tokens=True)
    return np.asarray(prompt, dtype=np.int32)


def _fitted(
    body: CompletionBody, engine: EngineReady, prompts: Sequence[TokenIds]
) -> SamplingParams:
    """The request's sampling; a length that nobody asked for gives way to a long prompt."""
    sampling = body.completion_sampling()
    if "max_tokens" in body.model_fields_set or not prompts:
        return sampling
    room = engine.limits.longest_tokens - max(map(len, prompts))
    return replace(sampling, max_tokens=max(1, min(room, body.max_tokens)))


def _utf8_decoder() -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder("utf-8")("replace")


@dataclass(slots=True)
class TextOffset:
    """How far an answer's tokens have come in its text; only this module changes it.

    Attributes:
        num_characters: complete characters so far: pieces of one count when it is whole.
    """

    num_characters: int = 0
    _decoder: codecs.IncrementalDecoder = field(default_factory=_utf8_decoder)

    def pass_token(self, raw: bytes) -> int:
        """Where the next token begins, and go past its bytes."""
        start = self.num_characters
        self.num_characters += len(self._decoder.decode(raw))
        return start


@dataclass(frozen=True, slots=True)
class Echo:
    """What an answer repeats of its prompt.

    Attributes:
        first_token: the prompt's first token, for which there is no log-probability.
    """

    text: str
    first_token: str


def _echoes(service: Service, body: CompletionBody, prompts: Sequence[TokenIds]) -> Sequence[Echo]:
    if not body.echo:
        return ()
    tokenizer = service.tokenizer
    echoes: list[Echo] = []
    for given, token_ids in zip(body.prompts(), prompts, strict=True):
        text = given if isinstance(given, str) else tokenizer.decode(given)
        first_token = tokenizer.token_text(int(token_ids[0])) if len(token_ids) else ""
        echoes += [Echo(text, first_token)] * body.n
    return echoes


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionShape:
    """How completions are worded.

    Attributes:
        has_logprobs: log-probabilities were asked for.
        has_usage: a last chunk with the numbers of tokens was asked for.
        is_prompt_only: the answer's own tokens are not wanted.
        echoes: what each answer repeats of its prompt; empty for nothing.
        offsets: how far each answer's tokens have come in its text, by index.
    """

    model: str
    has_logprobs: bool
    has_usage: bool
    is_prompt_only: bool
    echoes: Sequence[Echo]
    request_id: str = field(default_factory=lambda: f"cmpl-{uuid.uuid4().hex}")
    created_s: int = field(default_factory=lambda: int(time.time()))
    offsets: dict[int, TextOffset] = field(default_factory=dict[int, TextOffset])

    def opening(self, index: int) -> Sequence[Completion]:
        """Nothing: the first chunk has text already."""
        return []

    def chunks(self, index: int, delta: AnswerDelta) -> Sequence[Completion]:
        """One chunk, if there is something to show."""
        is_first = index not in self.offsets
        choice = self._choice(index, delta)
        if choice.text or delta.logprobs or choice.finish_reason or (is_first and self.echoes):
            return [self._completion([choice], None if self.has_usage else UNSET)]
        return []

    def usage_chunk(self, usage: Usage) -> Completion:
        """The last chunk: numbers of tokens and no choices."""
        return self._completion([], usage)

    def whole(self, answers: Sequence[AnswerDelta], usage: Usage) -> Completion:
        """All completions at once."""
        choices = [self._choice(index, answer) for index, answer in enumerate(answers)]
        return self._completion(choices, usage)

    def _completion(
        self, choices: list[CompletionChoice], usage: Usage | UnsetType | None
    ) -> Completion:
        return Completion(
            self.request_id, "text_completion", self.created_s, self.model, choices, usage
        )

    def _choice(self, index: int, delta: AnswerDelta) -> CompletionChoice:
        """One choice; the first of an index begins with the echo."""
        text = "" if self.is_prompt_only else delta.text
        tokens = () if self.is_prompt_only else delta.logprobs
        positions: list[TokenText | str] = [*tokens]
        if index not in self.offsets and self.echoes:
            echo = self.echoes[index]
            text = echo.text + text
            positions = [echo.first_token, *delta.prompt_logprobs, *tokens]
        finish_reason = None if delta.finish_reason is None else finish_word(delta.finish_reason)
        if self.is_prompt_only and finish_reason is not None:
            finish_reason = "length"
        logprobs = self._logprobs(index, positions)
        return CompletionChoice(index, text, logprobs, finish_reason)

    def _logprobs(
        self, index: int, positions: Sequence[TokenText | str]
    ) -> CompletionLogprobs | None:
        """Log-probabilities of some positions; a bare text is a token that has none."""
        offset = self.offsets.setdefault(index, TextOffset())
        logprobs = CompletionLogprobs([], [], [], [])
        for position in positions:
            if isinstance(position, str):
                text, raw, logprob, top = position, position.encode(), None, None
            else:
                text, raw, logprob = position.text, position.raw, finite(position.logprob)
                # The token itself is always among them, as clients look it up here.
                top = {each.text: finite(each.logprob) for each in position.top}
                top.setdefault(text, logprob)
            logprobs.tokens.append(text)
            logprobs.token_logprobs.append(logprob)
            logprobs.top_logprobs.append(top)
            logprobs.text_offset.append(offset.pass_token(raw))
        return logprobs if self.has_logprobs else None
