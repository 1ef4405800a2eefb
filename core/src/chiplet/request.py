"""Request: one prompt, its answer so far, and where it stands."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum, StrEnum

import numpy as np
from numpy.typing import NDArray

from chiplet.errors import PromptTooLong, RequestError
from chiplet.sampling_params import SamplingParams

TokenIds = NDArray[np.int32]
"""Token ids, `[num_tokens] int32`, host."""


class RequestState(Enum):
    """Where a request stands."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class FinishReason(StrEnum):
    """Why an answer ended."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(slots=True, eq=False, kw_only=True)
class Request:
    """One prompt and its answer so far; only the Scheduler changes it.

    Attributes:
        request_id: unique among the requests alive.
        prompt_token_ids: `[num_prompt_tokens] int32`, at least one.
        sampling: how to pick tokens; `n` is already unfolded, `max_tokens` is set.
        end_token_ids: tokens that end the answer (the model's own unless `ignore_eos`, and the
            request's `stop_token_ids`); barred until `min_tokens`.
        seed: 64-bit seed of the answer's random numbers, always set.
        arrival_s: monotonic clock at arrival.
        output_token_ids: tokens committed so far.
        num_cached_tokens: prompt tokens that the radix tree had at the first admission.
        finish_reason: set once, on the way to FINISHED.
        error: what went wrong, with `FinishReason.ERROR`.
    """

    request_id: str
    prompt_token_ids: TokenIds
    sampling: SamplingParams
    end_token_ids: frozenset[int]
    seed: int
    arrival_s: float
    state: RequestState = RequestState.WAITING
    output_token_ids: list[int] = field(default_factory=list[int])
    num_cached_tokens: int = 0
    finish_reason: FinishReason | None = None
    error: str | None = None

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens in the prompt."""
        return len(self.prompt_token_ids)

    @property
    def num_tokens(self) -> int:
        """Prompt and committed output together."""
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    @property
    def max_output_tokens(self) -> int:
        """Longest answer allowed."""
        assert self.sampling.max_tokens is not None
        return self.sampling.max_tokens

    def token_ids(self) -> TokenIds:
        """Prompt and committed output, `[num_tokens] int32`, a fresh array."""
        output = np.asarray(self.output_token_ids, dtype=np.int32)
        return np.concatenate([self.prompt_token_ids, output])


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprobs:
    """Log-probabilities at one position, of the model's own distribution.

    They are taken before temperature, penalties, bias and filters.

    Attributes:
        token_id: the token at this position.
        logprob: its natural log-probability.
        top_token_ids: the likeliest tokens, likeliest first.
        top_logprobs: theirs.
    """

    token_id: int
    logprob: float
    top_token_ids: tuple[int, ...] = ()
    top_logprobs: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOutput:
    """What one step brought to one request.

    Attributes:
        token_ids: new tokens in order; an end token is included.
        finish_reason: set on the last output of a request.
        stop_token_id: the end token that finished it, if one did.
        num_output_tokens: tokens in the answer so far.
        logprobs: one entry per new token, if asked for.
        prompt_logprobs: with the first output, entries for prompt positions 1 onwards, if asked
            for (nothing predicts position 0).
        error: set with `FinishReason.ERROR`.
    """

    request_id: str
    token_ids: tuple[int, ...]
    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    logprobs: tuple[TokenLogprobs, ...] | None = None
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """What a served model can take.

    Attributes:
        context_length: longest prompt and answer together, in tokens.
        max_total_tokens: tokens that the KV cache holds.
        vocab_size: token ids are below it.
        eos_token_ids: the model's own end tokens.
    """

    context_length: int
    max_total_tokens: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]

    @property
    def longest_tokens(self) -> int:
        """Longest prompt and answer together that can be served, in tokens."""
        return min(self.context_length, self.max_total_tokens)

    def check(self, prompt_token_ids: TokenIds, sampling: SamplingParams) -> None:
        """Refuse what cannot be served, before it reaches the engine.

        Raises:
            PromptTooLong: prompt and answer do not fit.
            RequestError: the prompt is empty, or a token id is outside the vocabulary.
        """
        self._check_length(len(prompt_token_ids), sampling)
        for param in ("logprobs", "prompt_logprobs"):
            count = getattr(sampling, param)
            if count is not None and count > self.vocab_size:
                raise RequestError(
                    f"{param} is {count}; the vocabulary has {self.vocab_size} tokens.",
                    param=param,
                )
        named_ids = {
            "prompt": (int(prompt_token_ids.min()), int(prompt_token_ids.max())),
            "logit_bias": tuple(sampling.logit_bias),
            "stop_token_ids": sampling.stop_token_ids,
        }
        for param, token_ids in named_ids.items():
            for token_id in token_ids:
                if not 0 <= token_id < self.vocab_size:
                    raise RequestError(
                        f"{param} has token id {token_id}; allowed: 0 to {self.vocab_size - 1}.",
                        param=param,
                    )

    def _check_length(self, num_prompt_tokens: int, sampling: SamplingParams) -> None:
        if num_prompt_tokens == 0:
            raise RequestError("The prompt is empty; it needs one token or more.", param="prompt")
        longest = self.longest_tokens
        num_output_tokens = sampling.max_tokens or max(1, sampling.min_tokens)
        if num_prompt_tokens + num_output_tokens > longest:
            param = "max_tokens" if sampling.max_tokens else "min_tokens"
            raise PromptTooLong(
                f"This model's maximum context length is {longest} tokens; the prompt has "
                f"{num_prompt_tokens} and {'' if sampling.max_tokens else 'at least '}"
                f"{num_output_tokens} more are to be generated. Shorten the prompt or lower "
                f"{param}.",
                param="prompt" if num_prompt_tokens >= longest else param,
            )

    def request(
        self,
        request_id: str,
        prompt_token_ids: TokenIds,
        sampling: SamplingParams,
        *,
        seed: int,
        arrival_s: float,
    ) -> Request:
        """A request for one answer, with every open setting filled in.

        Args:
            request_id: unique among the requests alive.
            prompt_token_ids: `[num_prompt_tokens] int32`, checked.
            sampling: settings as the client gave them, checked; `n` is 1.
            seed: used if the client gave none.
            arrival_s: monotonic clock.
        """
        end_token_ids = () if sampling.ignore_eos else self.eos_token_ids
        return Request(
            request_id=request_id,
            prompt_token_ids=prompt_token_ids,
            sampling=replace(
                sampling,
                max_tokens=sampling.max_tokens or self.longest_tokens - len(prompt_token_ids),
            ),
            end_token_ids=frozenset(end_token_ids) | frozenset(sampling.stop_token_ids),
            seed=seed if sampling.seed is None else sampling.seed,
            arrival_s=arrival_s,
        )


def unfold(sampling: SamplingParams) -> list[SamplingParams]:
    """Settings of each of `n` answers: an explicit seed is advanced by one per answer."""
    if sampling.n == 1:
        return [sampling]
    return [
        replace(
            sampling, n=1, seed=None if sampling.seed is None else (sampling.seed + index) % 2**64
        )
        for index in range(sampling.n)
    ]
