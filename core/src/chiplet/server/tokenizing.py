"""`POST /tokenize` and `POST /detokenize`: text to token ids and back."""

from __future__ import annotations

import msgspec
from pydantic import Field, model_validator

from chiplet.errors import RequestError
from chiplet.server.openai.bodies import Body, ChatMessage, TokenId
from chiplet.server.openai.chat import conversation
from chiplet.server.service import Service
from chiplet.text.chat import apply_chat_template


class TokenizeBody(Body):
    """Body of `POST /tokenize`: a prompt, or messages to put into the chat template."""

    model: str | None = None
    prompt: str | None = Field(default=None, description="A text.")
    messages: list[ChatMessage] | None = Field(
        default=None, description="A conversation, instead of a prompt."
    )
    add_special_tokens: bool | None = Field(
        default=None,
        description="Add the tokens that the model wants around a text: for a prompt by default, "
        "not for messages, whose template writes them.",
    )
    add_generation_prompt: bool = Field(
        default=True, description="Of messages: end with the beginning of an answer."
    )

    @model_validator(mode="after")
    def _check_one_text(self) -> TokenizeBody:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either 'prompt' or 'messages'")
        return self


class DetokenizeBody(Body):
    """Body of `POST /detokenize`."""

    model: str | None = None
    tokens: list[TokenId]


class TokenizeAnswer(msgspec.Struct, frozen=True):
    """Answer to `POST /tokenize`."""

    tokens: list[int]
    count: int
    max_model_len: int


class DetokenizeAnswer(msgspec.Struct, frozen=True):
    """Answer to `POST /detokenize`."""

    prompt: str


async def tokenize(service: Service, body: TokenizeBody) -> TokenizeAnswer:
    """The token ids of a text or of a conversation.

    Raises:
        ChipletError: the request cannot be served.
    """
    engine = service.engine_for(body.model)
    if body.messages is None:
        text, adds_special_tokens = body.prompt or "", body.add_special_tokens is not False
    else:
        text = apply_chat_template(
            service.tokenizer,
            conversation(body.messages),
            add_generation_prompt=body.add_generation_prompt,
        )
        adds_special_tokens = body.add_special_tokens is True
    token_ids = await service.encode(text, add_special_tokens=adds_special_tokens)
    return TokenizeAnswer(token_ids.tolist(), len(token_ids), engine.limits.context_length)


async def detokenize(service: Service, body: DetokenizeBody) -> DetokenizeAnswer:
    """The text of some token ids, special tokens included.

    Raises:
        ChipletError: the request cannot be served.
    """
    engine = service.engine_for(body.model)
    vocab_size = engine.limits.vocab_size
    for token_id in body.tokens:
        if not 0 <= token_id < vocab_size:
            raise RequestError(
                f"tokens has token id {token_id}; allowed: 0 to {vocab_size - 1}.", param="tokens"
            )
    return DetokenizeAnswer(service.tokenizer.decode(body.tokens, skip_special_tokens=False))
