"""SamplingParams: how to pick the tokens of one answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from chiplet.errors import RequestError

MAX_LOGPROBS = 32
"""Most alternatives per token that a request may ask for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to pick the tokens of one answer; checked when made.

    Attributes:
        temperature: 0 picks the likeliest token; larger values flatten the distribution.
        top_k: sample among the k likeliest tokens; 0 means all.
        top_p: sample among the likeliest tokens that hold this probability mass together; the
            likeliest one is always among them.
        min_p: drop tokens less likely than this fraction of the likeliest one.
        repetition_penalty: above 1 makes tokens of prompt and answer less likely
            (positive logits are divided by it, negative ones multiplied).
        presence_penalty: subtracted once from the logit of each token in the answer so far.
        frequency_penalty: subtracted once per occurrence in the answer so far.
        logit_bias: added to the logits of these token ids.
        seed: same seed, same draws, whatever else is in the batch; None takes a fresh one. (Matrix
            products may round differently in another batch; a draw may then fall otherwise where
            two tokens meet.)
        stop: the answer ends before the first of these strings.
        stop_token_ids: the answer ends with any of these tokens, besides the model's own.
        max_tokens: longest answer in tokens; None means what the context length leaves.
        min_tokens: end tokens cannot be picked before the answer has this many tokens; a stop
            string still ends it.
        ignore_eos: the model's own end tokens do not end the answer.
        logprobs: report log-probabilities of picked tokens with this many alternatives
            (0 reports the picked token only); None reports nothing.
        prompt_logprobs: likewise for the prompt's tokens.
        n: how many answers to one prompt.
        skip_special_tokens: leave special tokens out of the text.
        include_stop_in_output: keep the stop string that ended the answer in the text.

    Raises:
        RequestError: a value is out of range; `param` names the field.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict[int, float])
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    max_tokens: int | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    n: int = 1
    skip_special_tokens: bool = True
    include_stop_in_output: bool = False

    def __post_init__(self) -> None:
        _check(0.0 <= self.temperature <= 100.0, "temperature", self.temperature, "0 to 100")
        _check(0 <= self.top_k < 2**31, "top_k", self.top_k, "0 (all tokens) to 2^31 - 1")
        _check(0.0 <= self.top_p <= 1.0, "top_p", self.top_p, "0 to 1")
        _check(0.0 <= self.min_p <= 1.0, "min_p", self.min_p, "0 to 1")
        _check(
            0.01 <= self.repetition_penalty <= 100.0,
            "repetition_penalty",
            self.repetition_penalty,
            "0.01 to 100",
        )
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            _check(-2.0 <= value <= 2.0, name, value, "-2 to 2")
        for token_id, bias in self.logit_bias.items():
            _check(token_id >= 0, "logit_bias", token_id, "token ids of 0 or more")
            _check(-100.0 <= bias <= 100.0, "logit_bias", bias, "-100 to 100")
        if self.seed is not None:
            _check(-(2**63) <= self.seed < 2**64, "seed", self.seed, "a 64-bit integer")
        _check(all(self.stop), "stop", "''", "strings of at least one character")
        _check(
            all(token_id >= 0 for token_id in self.stop_token_ids),
            "stop_token_ids",
            self.stop_token_ids,
            "token ids of 0 or more",
        )
        if self.max_tokens is not None:
            _check(1 <= self.max_tokens < 2**31, "max_tokens", self.max_tokens, "1 to 2^31 - 1")
            _check(
                self.min_tokens <= self.max_tokens,
                "min_tokens",
                self.min_tokens,
                f"at most max_tokens ({self.max_tokens})",
            )
        _check(0 <= self.min_tokens < 2**31, "min_tokens", self.min_tokens, "0 to 2^31 - 1")
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            if value is not None:
                _check(0 <= value <= MAX_LOGPROBS, name, value, f"0 to {MAX_LOGPROBS}")
        _check(1 <= self.n <= 128, "n", self.n, "1 to 128")

    @property
    def is_greedy(self) -> bool:
        """The likeliest token is picked, no randomness."""
        return self.temperature < 1e-5 or self.top_k == 1

    @property
    def has_penalties(self) -> bool:
        """Some penalty differs from its neutral value."""
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )


def _check(is_sound: bool, param: str, value: object, allowed: str) -> None:
    # NaN compares false everywhere, so it fails here as it should.
    if not is_sound:
        raise RequestError(f"{param} is {value}; allowed: {allowed}.", param=param)
