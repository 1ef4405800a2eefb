"""LLM: a model in this process, for offline use."""

from __future__ import annotations

import logging
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import count
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from rich.progress import Progress

from chiplet.answers import Answer, Completion, OpenAnswer, StreamDelta
from chiplet.config import EngineConfig
from chiplet.engine import Engine
from chiplet.errors import ConfigError, EngineError, RequestError
from chiplet.formats.catalogue import resolve_model
from chiplet.plugins import begin_choice, discover
from chiplet.request import TokenIds, unfold
from chiplet.sampling_params import SamplingParams
from chiplet.text.answer_text import AnswerText, TextOptions
from chiplet.text.chat import apply_chat_template
from chiplet.text.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from chiplet.worker import EngineFacts

__all__ = ["LLM", "Answer", "Completion", "Message", "Prompt", "StreamDelta"]

Prompt = str | Sequence[int]
"""Text, or token ids."""

Message = Mapping[str, Any]
"""One message of a conversation: 'role' and 'content'."""

MAX_INT32 = 2**31 - 1


class LLM:
    """A model in this process; one thread at a time may use it.

    Example:
        with LLM("smollm2-135m") as llm:
            print(llm.chat([{"role": "user", "content": "Hello"}]).text)
    """

    def __init__(self, model: str | EngineConfig = "smollm2-135m", **options: Any) -> None:
        """Load a model.

        Args:
            model: folder, GGUF file, catalogue name or hub name; or all settings in one value.
            options: settings by the names of their fields, like `device="cpu"`.

        Raises:
            ConfigError: a setting, the checkpoint or a plugin is wrong.
        """
        config = _config_of(model, options)
        path = resolve_model(config.model.model)
        self._tokenizer = load_tokenizer(
            path, config.model.tokenizer_path, config.model.chat_template
        )
        with ExitStack() as at_failure:
            plugins = discover(config.device)
            at_failure.callback(plugins.shut_down)
            choice = begin_choice(plugins, config.device)
            # The tensor library takes a second to import; the probes run meanwhile.
            from chiplet import worker  # noqa: PLC0415

            # Nobody is to be told to come back later: offline, any number may wait.
            config = config.replacing("schedule.max_queued_requests", sys.maxsize)
            engine, self._facts = worker.start(config, choice)
            at_failure.callback(engine.close)
            self._at_end = at_failure.pop_all()
        self._engine: Engine | None = engine
        self._open_answers: dict[str, OpenAnswer] = {}
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
        return self._complete(_batch_of(prompts), params, progress=progress, is_chat=False)

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
            [self._prepare(prompt, each, is_chat=is_chat) for each in unfold(sampling)]
            for prompt, sampling in zip(encoded, each_params, strict=True)
        ]
        answers = [each for group in opened for each in group]
        try:
            for each in answers:
                self._submit(each)
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
        prompt = self.chat_prompt(messages)
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
        return self._stream(self.chat_prompt(messages), params, is_chat=True)

    def chat_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation in the model's chat template, ready to be answered.

        Raises:
            RequestError: the model has no template, or it refuses the messages.
        """
        text = apply_chat_template(self._tokenizer, messages)
        return self._tokenizer.encode(text, add_special_tokens=False)

    def close(self) -> None:
        """End all open answers and let go of memory and plugins; again is harmless."""
        self._drop(list(self._open_answers.values()))
        self._engine = None
        self._at_end.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _encode(self, prompt: Prompt, sampling: SamplingParams) -> TokenIds:
        token_ids = self._tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        array = _token_array(token_ids)
        self._facts.limits.check(array, sampling)
        return array

    def _prepare(self, prompt: TokenIds, sampling: SamplingParams, *, is_chat: bool) -> OpenAnswer:
        """An answer that the engine does not know of yet."""
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
        return OpenAnswer(request, AnswerText(self._tokenizer, options))

    def _submit(self, answer: OpenAnswer) -> None:
        self._running_engine().add(answer.request)
        self._open_answers[answer.request.request_id] = answer

    def _running_engine(self) -> Engine:
        if self._engine is None:
            raise EngineError("This LLM is closed; open another one.")
        return self._engine

    def _pump(self) -> list[str]:
        """One step; what it brought goes to the answers it belongs to.

        Returns:
            Ids of the answers that ended.
        """
        engine = self._running_engine()
        ended: list[str] = []
        for output in engine.step():
            answer = self._open_answers.get(output.request_id)
            if answer is None:
                continue
            is_stopped_here = answer.take(output)
            if answer.finish_reason is not None:
                del self._open_answers[output.request_id]
                ended.append(output.request_id)
            if is_stopped_here:
                engine.abort(output.request_id)
        return ended

    def _finish(self, answers: Sequence[OpenAnswer], *, progress: bool) -> None:
        open_ids = {each.request.request_id for each in answers}
        with Progress(disable=not progress, transient=True) as bar:
            task = bar.add_task("Answers", total=len(answers))
            while open_ids:
                open_ids.difference_update(self._pump())
                bar.update(task, completed=len(answers) - len(open_ids))

    def _stream(
        self, prompt: Prompt, params: SamplingParams | None, *, is_chat: bool
    ) -> Iterator[StreamDelta]:
        sampling = params or SamplingParams()
        if sampling.n != 1:
            raise RequestError(f"n is {sampling.n}; a stream has one answer.", param="n")
        self._running_engine()
        return self._deltas(
            self._prepare(self._encode(prompt, sampling), sampling, is_chat=is_chat)
        )

    def _deltas(self, answer: OpenAnswer) -> Iterator[StreamDelta]:
        # Asked of the engine here, with the first delta wanted: a stream that nobody reads never
        # gets to the `finally` below.
        self._submit(answer)
        num_given = 0
        try:
            while True:
                # Other calls run steps too, so more than one delta may have come meanwhile.
                while num_given < len(answer.deltas):
                    num_given += 1
                    yield answer.deltas[num_given - 1]
                if answer.finish_reason is not None:
                    break
                self._pump()
            answer.answer()
        finally:
            self._drop([answer])

    def _drop(self, answers: Sequence[OpenAnswer]) -> None:
        """Abort whatever has not ended."""
        for each in answers:
            request_id = each.request.request_id
            if self._open_answers.pop(request_id, None) is not None:
                self._running_engine().abort(request_id)


def _config_of(model: str | EngineConfig, options: Mapping[str, Any]) -> EngineConfig:
    """The settings, without those that only a server can follow."""
    if not isinstance(model, EngineConfig):
        config = EngineConfig.from_options(model=model, **options)
    elif options:
        raise ConfigError(
            f"A whole EngineConfig and {', '.join(options)} are given.",
            remedy="Set all in the EngineConfig.",
        )
    else:
        config = model
    if config.log.log_requests:
        raise ConfigError("log_requests belongs to the server.", remedy="Leave it out.")
    if "schedule.max_queued_requests" in config.explicit:
        raise ConfigError(
            "max_queued_requests belongs to the server; offline, any number may wait.",
            remedy="Leave it out.",
        )
    if "log.log_level" in config.explicit:
        # A program that set up logging keeps its own handlers.
        logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
        logging.getLogger("chiplet").setLevel(config.log.log_level.upper())
    return config


def _batch_of(prompts: object) -> Sequence[Prompt]:
    if isinstance(prompts, str):
        return [prompts]
    if not isinstance(prompts, Sequence):
        raise RequestError(
            f"prompts is a {type(prompts).__name__}; allowed: text, or a list of texts or lists "
            "of token ids.",
            param="prompts",
        )
    batch: Sequence[Any] = prompts
    for index, prompt in enumerate(batch):
        if not isinstance(prompt, str | Sequence | np.ndarray):
            raise RequestError(
                f"prompts[{index}] is {prompt!r}; allowed: text or a list of token ids. Write one "
                "prompt of token ids like [[1, 2, 3]].",
                param="prompts",
            )
    return batch


def _token_array(token_ids: Sequence[Any]) -> TokenIds:
    """Token ids that came from outside, `[num_tokens] int32`."""
    for each in token_ids:
        if isinstance(each, bool) or not isinstance(each, int | np.integer):
            raise RequestError(
                f"The prompt holds {each!r}; allowed: whole numbers. Give text or a list of token "
                "ids.",
                param="prompt",
            )
        if not 0 <= each <= MAX_INT32:
            raise RequestError(
                f"The prompt holds token id {each}; allowed: ids of the vocabulary.",
                param="prompt",
            )
    return np.asarray(token_ids, dtype=np.int32)


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
