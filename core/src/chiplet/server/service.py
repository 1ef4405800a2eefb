"""Service: what all routes share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from chiplet.errors import PromptTooLong, RequestError
from chiplet.ipc.messages import EngineReady
from chiplet.request import RequestLimits, TokenIds, unfold
from chiplet.sampling_params import SamplingParams
from chiplet.server.engine_client import EngineClient, WantedAnswer
from chiplet.server.errors import UnknownModel
from chiplet.server.health import Health
from chiplet.server.metrics import Metrics
from chiplet.text.tokenizer import Tokenizer

LONG_TEXT_CHARACTERS = 8192
"""A text from this length on is tokenized in a thread; it would hold up everybody's tokens."""


@dataclass(frozen=True, slots=True)
class Service:
    """What all routes share.

    Attributes:
        started_s: wall clock; shown as the model's time of creation.
    """

    client: EngineClient
    tokenizer: Tokenizer
    metrics: Metrics
    health: Health
    started_s: int = field(default_factory=lambda: int(time.time()))

    def engine_for(self, model: str | None) -> EngineReady:
        """Facts about the engine that serves a model.

        Raises:
            UnknownModel: another model is served.
            EngineError: the engine is not ready.
        """
        engine = self.client.engine
        if model not in (None, engine.model_name):
            raise UnknownModel(
                f"The model '{model}' does not exist here; served is '{engine.model_name}'.",
                param="model",
            )
        return engine

    async def encode_prompt(
        self, text: str, limits: RequestLimits, *, add_special_tokens: bool
    ) -> TokenIds:
        """The token ids of a prompt; what cannot fit is refused before it costs anything.

        Raises:
            PromptTooLong: even with the longest tokens it would not fit.
            RequestError: the text is no valid Unicode.
        """
        if len(text) >= LONG_TEXT_CHARACTERS:
            most = limits.longest_tokens * self.tokenizer.longest_token_bytes
            if len(text) > most:
                raise PromptTooLong(
                    f"This model's maximum context length is {limits.longest_tokens} tokens, at "
                    f"most {most} characters; the prompt has {len(text)}. Shorten the prompt.",
                    param="prompt",
                )
        return await self.encode(text, add_special_tokens=add_special_tokens)

    async def encode(self, text: str, *, add_special_tokens: bool) -> TokenIds:
        """The token ids of a text; a long one does not hold up other requests.

        Raises:
            RequestError: the text is no valid Unicode.
        """
        if len(text) < LONG_TEXT_CHARACTERS:
            ids = self.tokenizer.encode(text, add_special_tokens=add_special_tokens)
        else:
            ids = await asyncio.to_thread(
                self.tokenizer.encode, text, add_special_tokens=add_special_tokens
            )
        return np.asarray(ids, dtype=np.int32)


def wanted_answers(
    engine: EngineReady,
    prompts: Sequence[TokenIds],
    sampling: SamplingParams,
    *,
    continues_prompt: bool,
) -> list[WantedAnswer]:
    """All answers of a request: `n` to each prompt.

    Raises:
        RequestError: a prompt cannot be served.
    """
    if not prompts:
        raise RequestError("prompt is an empty list; allowed: one prompt or more.", param="prompt")
    for prompt in prompts:
        engine.limits.check(prompt, sampling)
    each_sampling = unfold(sampling)
    return [
        WantedAnswer(prompt, each, continues_prompt) for prompt in prompts for each in each_sampling
    ]
