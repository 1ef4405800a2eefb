"""The server's side of the engine, without an engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from chiplet.errors import EngineError, EngineRestarted, QueueFull, RequestError
from chiplet.ipc.messages import Abort, AddRequest, AnswerDelta, Refused, StepText, ToEngine
from chiplet.ipc.sockets import Inbox, Outbox
from chiplet.request import FinishReason
from chiplet.sampling_params import SamplingParams
from chiplet.server import launch
from chiplet.server.answer_stream import AnswerStream
from chiplet.server.engine_client import EngineClient, EngineLink, WantedAnswer
from chiplet.server.errors import ClientGone, EngineStarting, EngineStopping, http_error
from chiplet.server.metrics import Metrics
from chiplet.testing.fake_engine import start_fake_engine
from tests.server.server_process import engine_config


class Wire:
    """A client and the far end of its socket."""

    def __init__(self, folder: Path, max_answers: int = 4) -> None:
        self.metrics = Metrics()
        self.client = EngineClient(self.metrics, max_answers=max_answers)
        self.inbox: Inbox[AddRequest | Abort] = Inbox(folder / "engine.sock", ToEngine)
        self.outbox = Outbox(folder / "engine.sock")
        _, ready = start_fake_engine(engine_config(folder))
        self.client.connect(EngineLink(self.outbox, ready))

    def open(self, num_answers: int = 1) -> AnswerStream:
        wanted = WantedAnswer(np.array([5, 6], np.int32), SamplingParams(max_tokens=4), True)
        return self.client.open([wanted] * num_answers)

    def finished(self, reason: FinishReason) -> float:
        return self.metrics.answers.labels(reason.value)._value.get()

    def close(self) -> None:
        self.inbox.close()
        self.outbox.close()


@pytest.fixture
def wire(tmp_path: Path):
    wire = Wire(tmp_path)
    yield wire
    wire.close()


def delta(request_id: str, text: str = "x", reason: FinishReason | None = None) -> AnswerDelta:
    return AnswerDelta(request_id, text, 0, 1, reason)


async def test_text_reaches_the_answer_it_belongs_to(wire: Wire) -> None:
    first, second = wire.open(), wire.open(2)
    assert isinstance(wire.inbox.receive(), AddRequest)
    wire.client.take_text(
        StepText((delta(second.request_ids[1], "b"), delta(first.request_ids[0], "a")))
    )
    assert [(index, each.text) for index, each in await first.next()] == [(0, "a")]
    assert [(index, each.text) for index, each in await second.next()] == [(1, "b")]


async def test_a_stream_ends_when_all_its_answers_have(wire: Wire) -> None:
    stream = wire.open(2)
    ends = [delta(each, reason=FinishReason.STOP) for each in stream.request_ids]
    wire.client.take_text(StepText(tuple(ends)))
    assert len(await stream.next()) == 2
    assert await stream.next() == []
    assert wire.finished(FinishReason.STOP) == 2


async def test_leaving_aborts_what_is_open_once(wire: Wire) -> None:
    stream = wire.open(2)
    wire.client.take_text(StepText((delta(stream.request_ids[0], reason=FinishReason.STOP),)))
    stream.close(ClientGone("gone"))
    stream.close(ClientGone("gone"))
    messages = [wire.inbox.receive() for _ in range(3)]
    assert messages[2] == Abort((stream.request_ids[1],))
    assert list(wire.inbox.pending()) == []
    assert wire.finished(FinishReason.ABORT) == 1
    wire.client.take_text(StepText((delta(stream.request_ids[1]),)))
    assert [each.text for _, each in await stream.next()] == ["x"], "late text is dropped"
    with pytest.raises(ClientGone):
        await stream.next()


async def test_no_room_is_told_from_never_any_room(wire: Wire) -> None:
    wire.open(3)
    with pytest.raises(QueueFull):
        wire.open(2)
    with pytest.raises(RequestError, match="4 at once") as caught:
        wire.open(5)
    assert not isinstance(caught.value, QueueFull)
    assert len(wire.open(1).request_ids) == 1


async def test_what_cannot_be_sent_leaves_nothing_behind(wire: Wire) -> None:
    prompt = np.array([5], np.int32)
    sound = WantedAnswer(prompt, SamplingParams(), True)
    sampling = SamplingParams()
    object.__setattr__(sampling, "top_k", 2**70)  # past the checks, which refuse it
    with pytest.raises(OverflowError):
        wire.client.open([sound, WantedAnswer(prompt, sampling, True)])
    assert list(wire.inbox.pending()) == []
    wire.open(4)  # all the room there is


async def test_a_refusal_ends_the_whole_request(wire: Wire) -> None:
    stream = wire.open(2)
    wire.client.take_refusal(Refused(stream.request_ids[0], "full", "queue_full", None, 3))
    with pytest.raises(QueueFull) as caught:
        await stream.next()
    assert http_error(caught.value).retry_after_s == 3
    assert wire.finished(FinishReason.ERROR) == 1
    assert wire.finished(FinishReason.ABORT) == 1
    wire.client.take_refusal(Refused("unknown", "late", "queue_full"))


async def test_a_dead_engine_ends_everything(wire: Wire) -> None:
    streams = [wire.open(2), wire.open()]
    wire.client.disconnect(EngineRestarted("died"))
    for stream in streams:
        with pytest.raises(EngineRestarted):
            await stream.next()
    with pytest.raises(EngineRestarted):
        wire.open()
    assert not wire.client.is_ready
    assert wire.finished(FinishReason.ERROR) == 3


def test_totals_go_on_over_restarts() -> None:
    metrics = Metrics()
    engine, _ = start_fake_engine(engine_config(Path()))
    metrics.engine.update(replace(engine.stats(), total_output_tokens=5, num_running=2))
    metrics.engine.forget_engine()
    assert b"chiplet_output_tokens_total 5.0" in metrics.render()
    assert b"chiplet_requests_running" not in metrics.render()
    metrics.engine.update(replace(engine.stats(), total_output_tokens=3))
    assert b"chiplet_output_tokens_total 8.0" in metrics.render()


def test_before_the_first_start_nothing_is_taken() -> None:
    client = EngineClient(Metrics(), max_answers=1)
    with pytest.raises(EngineStarting) as caught:
        client.open([])
    error = http_error(caught.value)
    assert (error.status, error.body.code) == (503, "engine_starting")
    assert error.retry_after_s is not None


async def test_requests_that_outlast_the_drain_get_a_typed_error(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "DRAIN_LIMIT_S", 0.01)
    stream = wire.open()
    await launch.limit_drain(SimpleNamespace(should_exit=True), wire.client)
    with pytest.raises(EngineStopping) as caught:
        await stream.next()
    assert http_error(caught.value).body.code == "server_stopping"
    assert isinstance(caught.value, EngineError)
