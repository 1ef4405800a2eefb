"""LLM: a model in this process, for offline use."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from types import TracebackType
from typing import Any, Self

import numpy as np
from rich.progress import Progress

from chiplet.config import EngineConfig
from chiplet.errors import EngineError, RequestError
from chiplet.formats.catalogue import resolve_model
from chiplet.request import (
    FinishReason,
    RequestOutput,
    TokenIds,
    TokenLogprobs,
    unfold,
)
from chiplet.sampling_params import SamplingParams
from chiplet.text.answer_text import AnswerText, TextOptions
from chiplet.text.chat import apply_chat_template
from chiplet.text.tokenizer import Tokenizer, load_tokenizer
from chiplet.worker import EngineFacts, start

Prompt = str | Sequence[int]
"""Text, or token ids."""

Message = Mapping[str, Any]
"""One message of a conversation: 'role' and 'content'."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer to one prompt.

    Attributes:
        text: without the stop string or end token that ended it.
        token_ids: all tokens picked, the end token included.
        finish_reason: why it ended.
        logprobs: one entry per token, if asked for.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprobs, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """The answers to one prompt.

    Attributes:
        answers: `n` of them.
        num_cached_tokens: prompt tokens that did not have to be computed for the first answer.
        prompt_logprobs: for prompt positions 1 onwards, if asked for.
    """

    prompt_token_ids: tuple[int, ...]
    answers: tuple[Answer, ...]
    num_cached_tokens: int
    prompt_logprobs: tuple[TokenLogprobs, ...] | None

    @property
    def text(self) -> str:
        """Text of the first answer."""
        return self.answers[0].text


@dataclass(frozen=True, slots=True)
class StreamDelta:
    """What one step added to a streamed answer.

    Attributes:
        text: new text, possibly empty.
        token_ids: new tokens.
        finish_reason: set on the last one.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None


@dataclass(slots=True, eq=False)
class _OpenAnswer:
    """An answer in the making; only LLM changes it."""

    request_id: str
    text: AnswerText
    wants_logprobs: bool
    deltas: list[StreamDelta] = field(default_factory=list[StreamDelta])
    logprobs: list[TokenLogprobs] = field(default_factory=list[TokenLogprobs])
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None
    num_cached_tokens: int = 0
    finish_reason: FinishReason | None = None
    error: str | None = None

    def take(self, output: RequestOutput) -> bool:
        """Add what a step brought; True if a stop string ended the answer just now."""
        delta = self.text.push(
            output.token_ids,
            is_last=output.finish_reason is not None,
            stop_token_id=output.stop_token_id,
        )
        self.finish_reason = FinishReason.STOP if delta.is_stopped else output.finish_reason
        self.logprobs += output.logprobs or ()
        self.prompt_logprobs = output.prompt_logprobs or self.prompt_logprobs
        self.num_cached_tokens = output.num_cached_tokens
        self.error = output.error
        self.deltas.append(StreamDelta(delta.text, output.token_ids, self.finish_reason))
        return delta.is_stopped and output.finish_reason is None

    def answer(self) -> Answer:
        """The answer, once it has ended.

        Raises:
            EngineError: the engine failed on it.
        """
        assert self.finish_reason is not None
        if self.finish_reason is FinishReason.ERROR:
            raise EngineError(self.error or "The engine failed on this request.")
        return Answer(
            text="".join(delta.text for delta in self.deltas),
            token_ids=tuple(each for delta in self.deltas for each in delta.token_ids),
            finish_reason=self.finish_reason,
            logprobs=tuple(self.logprobs) if self.wants_logprobs else None,
        )


class LLM:
    """A model in this process; one thread at a time may use it.

    Example:
        with LLM("smollm2-135m") as llm:
            print(llm.chat([{"role": "user", "content": "Hello"}]).text)
    """

    def __init__(self, model: str = "smollm2-135m", **options: Any) -> None:
        """Load a model.

        Args:
            model: folder, GGUF file, catalogue name or hub name.
            options: settings by the names of their fields, like `device="cpu"`.

        Raises:
            ConfigError: a setting, the checkpoint or a plugin is wrong.
        """
        self._open(EngineConfig.from_options(model=model, **options))

    @classmethod
    def from_config(cls, config: EngineConfig) -> Self:
        """Load the model that a configuration describes."""
        llm = cls.__new__(cls)
        llm._open(config)
        return llm

    def _open(self, config: EngineConfig) -> None:
        path = resolve_model(config.model.model)
        self._tokenizer = load_tokenizer(
            path, config.model.tokenizer_path, config.model.chat_template
        )
        # Nobody is to be told to come back later: offline, any number may wait.
        self._engine, self._facts = start(
            config.replacing("schedule.max_queued_requests", sys.maxsize)
        )
        self._open_answers: dict[str, _OpenAnswer] = {}
        self._request_ids = count()
        self._seeds = random.Random(config.schedule.random_seed)

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self._tokenizer

    @property
    def facts(self) -> EngineFacts:
        """What is known of the engine: device, limits, who serves which operation."""
        return self._facts

    def generate(
        self,
        prompts: str | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = False,
    ) -> list[Completion]:
        """Continue prompts, all at once.

        Args:
            prompts: one text, or several texts or lists of token ids.
            params: for all prompts, or one per prompt.
            progress: show a bar.

        Raises:
            RequestError: a prompt or its parameters are wrong; nothing has been started.
            EngineError: the engine failed on a request.
        """
        batch: Sequence[Prompt] = [prompts] if isinstance(prompts, str) else prompts
        return self._complete(batch, params, progress=progress, is_chat=False)

    def _complete(
        self,
        batch: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None,
        *,
        progress: bool,
        is_chat: bool,
    ) -> list[Completion]:
        each_params = _params_of(batch, params)
        encoded = [
            self._encode(prompt, sampling)
            for prompt, sampling in zip(batch, each_params, strict=True)
        ]
        opened = [
            [self._submit(prompt, each, is_chat=is_chat) for each in unfold(sampling)]
            for prompt, sampling in zip(encoded, each_params, strict=True)
        ]
        answers = [each for group in opened for each in group]
        try:
            self._finish(answers, progress=progress)
        finally:
            self._drop(answers)
        return [
            Completion(
                prompt_token_ids=tuple(prompt.tolist()),
                answers=tuple(each.answer() for each in group),
                num_cached_tokens=group[0].num_cached_tokens,
                prompt_logprobs=group[0].prompt_logprobs,
            )
            for prompt, group in zip(encoded, opened, strict=True)
        ]

    def chat(self, messages: Sequence[Message], params: SamplingParams | None = None) -> Completion:
        """Answer a conversation through the model's chat template.

        Raises:
            RequestError: the template refuses the messages, or the parameters are wrong.
        """
        prompt = self._chat_prompt(messages)
        return self._complete([prompt], params, progress=False, is_chat=True)[0]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[StreamDelta]:
        """Continue one prompt, step by step; leaving the loop early ends the answer.

        Raises:
            RequestError: the prompt or its parameters are wrong, or `n` is not 1.
            EngineError: the engine failed on the request.
        """
        return self._stream(prompt, params, is_chat=False)

    def stream_chat(
        self, messages: Sequence[Message], params: SamplingParams | None = None
    ) -> Iterator[StreamDelta]:
        """Answer a conversation, step by step; see `stream`."""
        return self._stream(self._chat_prompt(messages), params, is_chat=True)

    def close(self) -> None:
        """End all open answers and let go of the model's memory."""
        self._drop(list(self._open_answers.values()))
        del self._engine

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _chat_prompt(self, messages: Sequence[Message]) -> list[int]:
        text = apply_chat_template(self._tokenizer, messages)
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _encode(self, prompt: Prompt, sampling: SamplingParams) -> TokenIds:
        token_ids = self._tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        array = np.asarray(token_ids, dtype=np.int32)
        self._facts.limits.check(array, sampling)
        return array

    def _submit(self, prompt: TokenIds, sampling: SamplingParams, *, is_chat: bool) -> _OpenAnswer:
        request = self._facts.limits.request(
            f"offline-{next(self._request_ids)}",
            prompt,
            sampling,
            seed=self._seeds.getrandbits(64),
            arrival_s=time.monotonic(),
        )
        options = TextOptions(
            stop=sampling.stop,
            skip_special_tokens=sampling.skip_special_tokens,
            include_stop_in_output=sampling.include_stop_in_output,
            keeps_leading_space=not is_chat,
        )
        answer = _OpenAnswer(
            request.request_id,
            AnswerText(self._tokenizer, options),
            sampling.logprobs is not None,
        )
        self._open_answers[request.request_id] = answer
        self._engine.add(request)
        return answer

    def _pump(self) -> None:
        """One step; what it brought goes to the answers it belongs to."""
        for output in self._engine.step():
            answer = self._open_answers.get(output.request_id)
            if answer is None:
                continue
            is_stopped_here = answer.take(output)
            if answer.finish_reason is not None:
                del self._open_answers[output.request_id]
            if is_stopped_here:
                self._engine.abort(output.request_id)

    def _finish(self, answers: Sequence[_OpenAnswer], *, progress: bool) -> None:
        with Progress(disable=not progress, transient=True) as bar:
            task = bar.add_task("Answers", total=len(answers))
            while any(each.finish_reason is None for each in answers):
                self._pump()
                done = sum(each.finish_reason is not None for each in answers)
                bar.update(task, completed=done)

    def _stream(
        self, prompt: Prompt, params: SamplingParams | None, *, is_chat: bool
    ) -> Iterator[StreamDelta]:
        sampling = params or SamplingParams()
        if sampling.n != 1:
            raise RequestError(f"n is {sampling.n}; a stream has one answer.", param="n")
        answer = self._submit(self._encode(prompt, sampling), sampling, is_chat=is_chat)
        return self._deltas(answer)

    def _deltas(self, answer: _OpenAnswer) -> Iterator[StreamDelta]:
        num_given = 0
        try:
            while answer.finish_reason is None:
                self._pump()
                yield from answer.deltas[num_given:]
                num_given = len(answer.deltas)
            answer.answer()
        finally:
            self._drop([answer])

    def _drop(self, answers: Sequence[_OpenAnswer]) -> None:
        """Abort whatever has not ended."""
        for each in answers:
            if self._open_answers.pop(each.request_id, None) is not None:
                self._engine.abort(each.request_id)


def _params_of(
    prompts: Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None
) -> Sequence[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * len(prompts)
    if len(params) != len(prompts):
        raise RequestError(
            f"There are {len(params)} sampling parameters for {len(prompts)} prompts; give one "
            "for all, or one per prompt.",
            param="params",
        )
    return params
