"""From wanted answers to an HTTP response, whole or as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

import msgspec
from fastapi import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive

from chiplet.errors import ChipletError
from chiplet.ipc.messages import AnswerDelta
from chiplet.server.answer_stream import AnswerStream
from chiplet.server.engine_client import EngineClient, WantedAnswer
from chiplet.server.errors import ClientGone, http_error
from chiplet.server.middleware import STREAM_STATE
from chiplet.server.openai.answers import PromptTokensDetails, Usage

STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""Proxies must pass events on as they come."""

DONE_EVENT = b"data: [DONE]\n\n"

_encoder = msgspec.json.Encoder()


class AnswerShape(Protocol):
    """How one API words the answers to one request; knows the request's id, model and options."""

    @property
    def has_usage(self) -> bool:
        """Streams end with a chunk that has the numbers of tokens."""
        ...

    def opening(self, index: int) -> Sequence[msgspec.Struct]:
        """Chunks that begin answer `index` in a stream."""
        ...

    def chunks(self, index: int, delta: AnswerDelta) -> Sequence[msgspec.Struct]:
        """Chunks for what a step brought; none if there is nothing to show."""
        ...

    def usage_chunk(self, usage: Usage) -> msgspec.Struct:
        """The last chunk, if the numbers of tokens were asked for."""
        ...

    def whole(self, answers: Sequence[AnswerDelta], usage: Usage) -> msgspec.Struct:
        """All answers at once, each with its text and log-probabilities joined."""
        ...


@dataclass(frozen=True, slots=True)
class Job:
    """One HTTP request's work.

    Attributes:
        wanted: the answers of the first prompt, then those of the second, and so on.
        num_per_prompt: answers to each prompt.
        is_prompt_only: the answers' own tokens are not wanted and not counted.
    """

    wanted: Sequence[WantedAnswer]
    num_per_prompt: int
    shape: AnswerShape
    is_streamed: bool
    is_prompt_only: bool = False


async def respond(client: EngineClient, request: Request, job: Job) -> Response:
    """The answers to a request; they are aborted when its client leaves.

    Raises:
        ChipletError: before the first token; what happens later is told within the stream.
    """
    stream = client.open(job.wanted)
    setattr(request.state, STREAM_STATE, stream)
    # The watch ends with the connection or the response, whichever is first.
    watch = asyncio.create_task(_close_with_client(request.receive, stream))
    request.state.watch = watch  # The event loop holds tasks by weak references only.
    if job.is_streamed:
        # The first tokens come before the headers, so that a failure until then has its status.
        first = await stream.next()
        events = _events(stream, first, job)
        return StreamingResponse(events, media_type="text/event-stream", headers=STREAM_HEADERS)
    answers = await _whole_answers(stream)
    body = _encoder.encode(job.shape.whole(answers, _usage(stream, job)))
    return Response(body, media_type="application/json")


async def _close_with_client(receive: Receive, stream: AnswerStream) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    stream.close(ClientGone("The client closed the connection."))


async def _whole_answers(stream: AnswerStream) -> list[AnswerDelta]:
    parts: list[list[AnswerDelta]] = [[] for _ in stream.request_ids]
    while batch := await stream.next():
        for index, delta in batch:
            parts[index].append(delta)
    return [_joined(each) for each in parts]


def _joined(deltas: Sequence[AnswerDelta]) -> AnswerDelta:
    last = deltas[-1]
    return AnswerDelta(
        request_id=last.request_id,
        text="".join(each.text for each in deltas),
        num_cached_tokens=last.num_cached_tokens,
        num_output_tokens=last.num_output_tokens,
        finish_reason=last.finish_reason,
        logprobs=tuple(chain.from_iterable(each.logprobs for each in deltas)),
        prompt_logprobs=tuple(chain.from_iterable(each.prompt_logprobs for each in deltas)),
    )


async def _events(
    stream: AnswerStream, first: list[tuple[int, AnswerDelta]], job: Job
) -> AsyncIterator[bytes]:
    shape = job.shape
    openings = chain.from_iterable(map(shape.opening, range(len(job.wanted))))
    events = _encoded(openings)
    batch = first
    try:
        while batch:
            for index, delta in batch:
                events += _encoded(shape.chunks(index, delta))
            if events:
                yield events
            events = b""
            batch = await stream.next()
    except ClientGone:
        return
    except ChipletError as error:
        yield b"data: " + http_error(error).json() + b"\n\n"
        return
    if shape.has_usage:
        yield _encoded([shape.usage_chunk(_usage(stream, job))])
    yield DONE_EVENT


def _encoded(chunks: Iterable[msgspec.Struct]) -> bytes:
    return b"".join(b"data: " + _encoder.encode(chunk) + b"\n\n" for chunk in chunks)


def _usage(stream: AnswerStream, job: Job) -> Usage:
    """Each prompt counts once, however many answers it has."""
    prompts = range(0, len(job.wanted), job.num_per_prompt)
    num_prompt_tokens = sum(len(job.wanted[index].prompt) for index in prompts)
    num_output_tokens = sum(each.num_output_tokens for each in stream.progress)
    if job.is_prompt_only:
        num_output_tokens = 0
    num_cached_tokens = sum(stream.progress[index].num_cached_tokens for index in prompts)
    return Usage(
        prompt_tokens=num_prompt_tokens,
        completion_tokens=num_output_tokens,
        total_tokens=num_prompt_tokens + num_output_tokens,
        prompt_tokens_details=PromptTokensDetails(num_cached_tokens),
    )
