"""`POST /v1/chat/completions`: a conversation in, the assistant's next message out."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from msgspec import UNSET
from starlette.responses import Response

from chiplet.errors import PromptTooLong
from chiplet.ipc.messages import AnswerDelta, TokenText
from chiplet.server.body_errors import UnsupportedParameter
from chiplet.server.generation import Job, respond
from chiplet.server.openai.answers import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatLogprob,
    ChatLogprobs,
    Delta,
    Message,
    TopLogprob,
    Usage,
)
from chiplet.server.openai.bodies import ChatBody, ChatMessage
from chiplet.server.openai.wording import finish_word, finite
from chiplet.server.service import Service, wanted_answers
from chiplet.text.chat import apply_chat_template


async def chat_completions(service: Service, request: Request, body: ChatBody) -> Response:
    """The assistant's next message.

    Raises:
        ChipletError: the request cannot be served.
    """
    engine = service.engine_for(body.model)
    sampling = body.chat_sampling()
    text = apply_chat_template(service.tokenizer, conversation(body.messages))
    # The template has written the special tokens already.
    try:
        prompt = await service.encode_prompt(text, engine.limits, add_special_tokens=False)
        wanted = wanted_answers(engine, [prompt], sampling, continues_prompt=False)
    except PromptTooLong as error:
        param = "messages" if error.param == "prompt" else error.param
        raise PromptTooLong(str(error), param=param) from None
    shape = ChatShape(
        model=engine.model_name, has_logprobs=body.logprobs, has_usage=body.wants_usage_chunk
    )
    job = Job(wanted, sampling.n, shape, body.stream)
    return await respond(service.client, request, job)


def conversation(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Messages as a chat template wants them: role and text, or parts that may be text.

    Raises:
        UnsupportedParameter: a message is of a tool.
    """
    return [
        {"role": _role(message, index), "content": _content(message)}
        for index, message in enumerate(messages)
    ]


def _role(message: ChatMessage, index: int) -> str:
    if message.role in ("tool", "function") or message.tool_calls:
        field = "tool_calls" if message.tool_calls else "role"
        raise UnsupportedParameter(
            f"messages[{index}].{field} is of a tool; tools are not served. Allowed: texts of "
            "system, developer, user and assistant.",
            param=f"messages[{index}].{field}",
        )
    # The newer name of the same role; templates know the older one.
    return "system" if message.role == "developer" else message.role


def _content(message: ChatMessage) -> str | list[dict[str, Any]]:
    if isinstance(message.content, list):
        return [part.model_dump() for part in message.content]
    return message.content or message.refusal or ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatShape:
    """How chat completions are worded.

    Attributes:
        has_logprobs: log-probabilities were asked for.
        has_usage: a last chunk with the numbers of tokens was asked for.
    """

    model: str
    has_logprobs: bool
    has_usage: bool
    request_id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created_s: int = field(default_factory=lambda: int(time.time()))

    def opening(self, index: int) -> Sequence[ChatChunk]:
        """The chunk that names the speaker."""
        return [self._chunk(ChatChunkChoice(index, Delta(role="assistant", content="")))]

    def chunks(self, index: int, delta: AnswerDelta) -> Sequence[ChatChunk]:
        """New text, then the end, each in a chunk of its own."""
        chunks: list[ChatChunk] = []
        logprobs = self._logprobs(delta)
        if delta.text or delta.logprobs:
            choice = ChatChunkChoice(index, Delta(content=delta.text), logprobs)
            chunks.append(self._chunk(choice))
        if delta.finish_reason is not None:
            end = ChatChunkChoice(index, Delta(), finish_reason=finish_word(delta.finish_reason))
            chunks.append(self._chunk(end))
        return chunks

    def usage_chunk(self, usage: Usage) -> ChatChunk:
        """The last chunk: numbers of tokens and no choices."""
        return ChatChunk(
            self.request_id, "chat.completion.chunk", self.created_s, self.model, [], usage
        )

    def whole(self, answers: Sequence[AnswerDelta], usage: Usage) -> ChatCompletion:
        """All messages at once."""
        choices = [
            ChatChoice(
                index,
                Message("assistant", answer.text),
                self._logprobs(answer),
                finish_word(answer.finish_reason),
            )
            for index, answer in enumerate(answers)
        ]
        return ChatCompletion(
            self.request_id, "chat.completion", self.created_s, self.model, choices, usage
        )

    def _chunk(self, choice: ChatChunkChoice) -> ChatChunk:
        usage = None if self.has_usage else UNSET
        return ChatChunk(
            self.request_id, "chat.completion.chunk", self.created_s, self.model, [choice], usage
        )

    def _logprobs(self, delta: AnswerDelta) -> ChatLogprobs | None:
        if not self.has_logprobs:
            return None
        return ChatLogprobs([_chat_logprob(each) for each in delta.logprobs])


def _chat_logprob(token: TokenText) -> ChatLogprob:
    top = [TopLogprob(each.text, finite(each.logprob), list(each.raw)) for each in token.top]
    return ChatLogprob(token.text, finite(token.logprob), list(token.raw), top)
