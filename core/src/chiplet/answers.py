"""Answers of an `LLM`: whole ones, streamed ones, and those in the making."""

from __future__ import annotations

from dataclasses import dataclass, field

from chiplet.errors import EngineError
from chiplet.request import FinishReason, Request, RequestOutput, TokenLogprobs
from chiplet.text.answer_text import AnswerText


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
        logprobs: one entry per new token, if asked for.
        prompt_logprobs: on the first one, for prompt positions 1 onwards, if asked for.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    logprobs: tuple[TokenLogprobs, ...] | None = None
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None


@dataclass(slots=True, eq=False)
class OpenAnswer:
    """An answer in the making; only the LLM changes it.

    Attributes:
        request: what the engine is asked, or is going to be.
        deltas: what the steps brought so far.
        error: set with `FinishReason.ERROR`.
    """

    request: Request
    text: AnswerText
    deltas: list[StreamDelta] = field(default_factory=list[StreamDelta])
    num_cached_tokens: int = 0
    finish_reason: FinishReason | None = None
    error: str | None = None

    @property
    def prompt_logprobs(self) -> tuple[TokenLogprobs, ...] | None:
        """For prompt positions 1 onwards, if asked for."""
        return self.deltas[0].prompt_logprobs

    def take(self, output: RequestOutput) -> bool:
        """Add what a step brought; True if a stop string ended the answer just now."""
        delta = self.text.push(
            output.token_ids,
            is_last=output.finish_reason is not None,
            stop_token_id=output.stop_token_id,
        )
        self.finish_reason = FinishReason.STOP if delta.is_stopped else output.finish_reason
        self.num_cached_tokens = output.num_cached_tokens
        self.error = output.error
        self.deltas.append(
            StreamDelta(
                delta.text,
                output.token_ids,
                self.finish_reason,
                output.logprobs,
                output.prompt_logprobs,
            )
        )
        return delta.is_stopped and output.finish_reason is None

    def answer(self) -> Answer:
        """The answer, once it has ended.

        Raises:
            EngineError: the engine failed on it.
        """
        assert self.finish_reason is not None
        if self.finish_reason is FinishReason.ERROR:
            raise EngineError(self.error or "The engine failed on this request.")
        logprobs = tuple(each for delta in self.deltas for each in delta.logprobs or ())
        return Answer(
            text="".join(delta.text for delta in self.deltas),
            token_ids=tuple(each for delta in self.deltas for each in delta.token_ids),
            finish_reason=self.finish_reason,
            logprobs=None if self.request.sampling.logprobs is None else logprobs,
        )
