"""The engine process's loop, in this process, over a fake engine."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from chiplet.errors import ModelError
from chiplet.ipc.messages import AddRequest, Refused, ToServer, pack_token_ids
from chiplet.ipc.sockets import Inbox, Outbox
from chiplet.request import Request, RequestOutput
from chiplet.sampling_params import SamplingParams
from chiplet.server.child import ENGINE_SOCKET, SERVER_SOCKET, explain_failure
from chiplet.server.engine_loop import EngineLoop, EngineSockets, ServedEngine
from chiplet.server.termination import Termination
from chiplet.testing.fake_engine import CRASH_TOKEN_ID, start_fake_engine
from tests.server.server_process import engine_config


def add_request(request_id: str, token_id: int, sampling: SamplingParams) -> AddRequest:
    return AddRequest(request_id, pack_token_ids(np.array([token_id], np.int32)), sampling, True)


def test_a_request_that_fits_nowhere_is_refused_and_the_loop_goes_on(tmp_path: Path) -> None:
    engine, ready = start_fake_engine(engine_config(tmp_path))
    server: Inbox[object] = Inbox(tmp_path / SERVER_SOCKET, ToServer)
    sockets = EngineSockets.open(tmp_path)
    outbox = Outbox(tmp_path / ENGINE_SOCKET)
    outbox.send(
        add_request("hopeless", 5, SamplingParams(min_tokens=1_000_000)),
        add_request("last", CRASH_TOKEN_ID, SamplingParams(max_tokens=1)),
    )
    with pytest.raises(RuntimeError, match="asked to crash"):
        EngineLoop(engine, sockets, ready.limits, random.Random(0), Termination()).run()
    arrived = iter(server.receive, None)
    refused = next(each for each in arrived if isinstance(each, Refused))
    assert refused.request_id == "hopeless"
    assert refused.param == "min_tokens"
    for each in (outbox, sockets, server):
        each.close()


def test_last_words_suit_a_failure_at_any_time() -> None:
    assert explain_failure(RuntimeError("no luck")).message == (
        "The engine failed: RuntimeError: no luck"
    )
    failed = explain_failure(ModelError("It is broken.", remedy="Mend it."))
    assert (failed.message, failed.remedy) == ("It is broken.", "Mend it.")


class EagerEngine:
    """Has time until a request comes, which it calls for; ends at its first step."""

    has_work = True

    def __init__(self, outbox: Outbox, fake: ServedEngine) -> None:
        self.outbox, self.stats = outbox, fake.stats
        self.added, self.num_asked = [], 0

    def spare_s(self) -> float:
        self.num_asked += 1
        if self.num_asked == 1:
            self.outbox.send(add_request("late", 5, SamplingParams(max_tokens=1)))
        return 0.0 if self.added else 10.0

    def add(self, request: Request) -> None:
        self.added.append(request.request_id)

    def step(self) -> list[RequestOutput]:
        raise RuntimeError(f"begun with {self.added}")


def test_a_step_takes_along_who_comes_while_there_is_time(tmp_path: Path) -> None:
    fake, ready = start_fake_engine(engine_config(tmp_path))
    sockets, outbox = EngineSockets.open(tmp_path), Outbox(tmp_path / ENGINE_SOCKET)
    engine = EagerEngine(outbox, fake)
    with pytest.raises(RuntimeError, match="late"):
        EngineLoop(engine, sockets, ready.limits, random.Random(0), Termination()).run()
    for each in (outbox, sockets):
        each.close()
