"""Bodies of requests: what clients may send, checked.

An explicit null means the default, for every field. A field that nobody knows is an error: to
ignore it would hide a typing mistake, or a wish that is not granted. Fields of the OpenAI API that
are known but not served are errors too (`REFUSED`), unless they hold the value that asks for
nothing. Fields that have no effect on the answer by their nature are accepted (`NO_EFFECT`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from chiplet.errors import RequestError
from chiplet.sampling_params import SamplingParams
from chiplet.server.body_errors import UnsupportedParameter, unknown_parameter

NO_EFFECT = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)
"""Fields of the OpenAI API that are accepted and change nothing here."""

REFUSED: Mapping[str, tuple[Any, ...]] = {
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "moderation": (),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
}
"""Fields of the OpenAI API that are not served, with the values that ask for nothing."""

TokenId = Annotated[int, Field(ge=-(2**31), lt=2**31)]
"""A token id that an array of 32-bit integers holds; the engine's limits say which are valid."""

B = TypeVar("B", bound="Body")


class Body(BaseModel):
    """What all bodies share: strict types, null means the default, no unknown fields."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        return {name: value for name, value in body.items() if value is not None}


class StreamOptions(Body):
    """Options of streaming."""

    include_usage: bool = Field(
        default=False, description="Send one last chunk with the numbers of tokens."
    )
    include_obfuscation: bool = Field(default=True, description="Accepted; changes nothing here.")


class GenerationBody(Body):
    """What chat completions and completions have in common."""

    model: str | None = Field(
        default=None, description="The served model's name; the only model if not given."
    )
    stream: bool = Field(default=False, description="Send server-sent events as tokens arrive.")
    stream_options: StreamOptions | None = None
    n: int = Field(default=1, ge=1, le=128, description="How many answers to each prompt.")
    temperature: float = Field(default=1.0, description="0 picks the likeliest token.")
    top_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[str, float] = Field(
        default_factory=dict[str, float], description="Token ids and what is added to their logits."
    )
    seed: int | None = None
    stop: str | list[str] = Field(
        default_factory=list[str], description="The answer ends before any of these."
    )
    top_k: int = Field(default=0, description="Extension: the k likeliest tokens; 0 means all.")
    min_p: float = Field(default=0.0, description="Extension.")
    repetition_penalty: float = Field(default=1.0, description="Extension.")
    min_tokens: int = Field(
        default=0, description="Extension: shortest answer in tokens; a stop string still ends it."
    )
    ignore_eos: bool = Field(
        default=False, description="Extension: the model's own end tokens do not end the answer."
    )
    stop_token_ids: list[TokenId] = Field(
        default_factory=list[int], description="Extension: tokens that end the answer."
    )
    skip_special_tokens: bool = Field(
        default=True, description="Extension: leave special tokens out of the text."
    )
    include_stop_str_in_output: bool = Field(
        default=False, description="Extension: keep the stop string in the text."
    )

    @model_validator(mode="before")
    @classmethod
    def _without_extras(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        extras = {name: value for name, value in body.items() if name not in cls.model_fields}
        for name, value in extras.items():
            _check_extra(name, value, list(cls.model_fields))
        return {name: value for name, value in body.items() if name not in extras}

    def sampling(
        self, *, max_tokens: int | None, logprobs: int | None, prompt_logprobs: int | None = None
    ) -> SamplingParams:
        """How to pick tokens.

        Raises:
            RequestError: a value is out of range.
        """
        if self.stream_options is not None and not self.stream:
            raise RequestError(
                "stream_options is only allowed with 'stream': true.", param="stream_options"
            )
        return SamplingParams(
            temperature=self.temperature,
            top_k=max(self.top_k, 0) if self.top_k == -1 else self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=_token_biases(self.logit_bias),
            seed=self.seed,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop),
            stop_token_ids=tuple(self.stop_token_ids),
            max_tokens=max_tokens,
            min_tokens=self.min_tokens,
            ignore_eos=self.ignore_eos,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            n=self.n,
            skip_special_tokens=self.skip_special_tokens,
            include_stop_in_output=self.include_stop_str_in_output,
        )

    @property
    def wants_usage_chunk(self) -> bool:
        """The stream ends with a chunk that has the numbers of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage


class ContentPart(BaseModel):
    """One part of a message; only text is served."""

    model_config = ConfigDict(extra="allow", strict=True)

    type: str
    text: str | None = None


class ChatMessage(Body):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None
    name: str | None = Field(default=None, description="Accepted; not shown to the model.")
    refusal: str | None = Field(default=None, description="Accepted as content of an assistant.")
    annotations: list[Any] = Field(default_factory=list[Any], description="Accepted likewise.")
    tool_calls: list[Any] = Field(default_factory=list[Any], description="Only an empty list.")
    tool_call_id: str | None = Field(default=None, description="Of tools, which are not served.")


class ChatBody(GenerationBody):
    """Body of `POST /v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(
        default=None, description="Longest answer in tokens; what the context leaves if not given."
    )
    max_tokens: int | None = Field(default=None, description="Old name of max_completion_tokens.")
    logprobs: bool = Field(default=False, description="Report log-probabilities of tokens.")
    top_logprobs: int | None = Field(default=None, description="With this many alternatives.")

    def chat_sampling(self) -> SamplingParams:
        """How to pick tokens.

        Raises:
            RequestError: a value is out of range, or two contradict each other.
        """
        limits = {self.max_completion_tokens, self.max_tokens} - {None}
        if len(limits) > 1:
            raise RequestError(
                f"max_completion_tokens is {self.max_completion_tokens} and max_tokens, its old "
                f"name, is {self.max_tokens}; give one of them.",
                param="max_tokens",
            )
        if self.top_logprobs is not None and not self.logprobs:
            raise RequestError(
                "top_logprobs is only allowed with 'logprobs': true.", param="top_logprobs"
            )
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        try:
            return self.sampling(max_tokens=next(iter(limits), None), logprobs=logprobs)
        except RequestError as error:
            raise _renamed(error, {"logprobs": "top_logprobs"}) from None


class CompletionBody(GenerationBody):
    """Body of `POST /v1/completions`."""

    prompt: str | list[str] | list[TokenId] | list[list[TokenId]] = Field(
        description="A text, token ids, or a list of either."
    )
    max_tokens: int = Field(
        default=16, ge=0, description="Longest answer in tokens; 0 only looks at the prompt."
    )
    echo: bool = Field(default=False, description="Begin each answer with its prompt.")
    logprobs: int | None = Field(
        default=None,
        ge=0,
        description="Report log-probabilities with this many alternatives; with echo, the "
        "prompt's too.",
    )
    best_of: int | None = Field(default=None, description="Only the value of n is served.")

    def completion_sampling(self) -> SamplingParams:
        """How to pick tokens.

        Raises:
            RequestError: a value is out of range or not served.
        """
        if self.best_of not in (None, self.n):
            raise UnsupportedParameter(
                f"best_of is {self.best_of}; only the value of n ({self.n}) is served.",
                param="best_of",
            )
        return self.sampling(
            # An engine always picks a token; one that nobody wants is dropped.
            max_tokens=max(self.max_tokens, 1),
            logprobs=self.logprobs,
            prompt_logprobs=self.logprobs if self.echo else None,
        )

    def prompts(self) -> Sequence[str | list[int]]:
        """Each prompt by itself, as text or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [[each for each in self.prompt if isinstance(each, int)]]
        return [each for each in self.prompt if not isinstance(each, int)]


def _check_extra(name: str, value: Any, known: Sequence[str]) -> None:
    if value is None or name in NO_EFFECT:
        return
    if name not in REFUSED:
        raise unknown_parameter(name, known)
    neutral = REFUSED[name]
    if value not in neutral:
        allowed = " or ".join(["null", *map(repr, neutral)])
        raise UnsupportedParameter(
            f"'{name}' is not served; allowed: {allowed}. Leave it out.", param=name
        )


def _token_biases(biases: Mapping[str, float]) -> dict[int, float]:
    try:
        return {int(token_id): bias for token_id, bias in biases.items()}
    except ValueError:
        raise RequestError(
            f"logit_bias has the keys {', '.join(biases)}; allowed: token ids.", param="logit_bias"
        ) from None


def _renamed(error: RequestError, names: Mapping[str, str]) -> RequestError:
    """The same error with the parameter's name as clients of this path know it."""
    new = names.get(error.param or "")
    if new is None or error.param is None:
        return error
    return RequestError(str(error).replace(error.param, new, 1), param=new)
