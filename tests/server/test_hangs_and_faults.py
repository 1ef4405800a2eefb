"""An engine that hangs, breaks or mends itself, and bodies too large: what clients see of it."""

from __future__ import annotations

import asyncio
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from chiplet.ipc.messages import Failed
from chiplet.server import processes
from chiplet.server.health import EngineStatus, Health, wait_silence
from chiplet.server.processes import ChildCommands, Generation
from chiplet.testing.fake_engine import (
    CRASH_TOKEN_ID,
    FAULT_TOKEN_ID,
    FAULTY,
    HANG_TOKEN_ID,
    RECOVER_TOKEN_ID,
)
from tests.server.server_process import ServerProcess, engine_config, eventually, running_server


@pytest.fixture(scope="module")
def server(model_folder: Path) -> Iterator[ServerProcess]:
    """A server that soon loses patience; each test leaves it ready."""
    config = engine_config(model_folder)
    with running_server(config, engine_timeout_s=1.5, max_body_mib=1) as running:
        yield running


def complete(server: ServerProcess, token_id: int) -> tuple[int, str]:
    response = server.http.post("/v1/completions", json={"prompt": [token_id, 65], "max_tokens": 2})
    body = response.json()
    return response.status_code, body["error"]["code"] if "error" in body else ""


def test_a_hung_engine_is_noticed_and_started_again(server: ServerProcess) -> None:
    restarts = server.http.get("/health").json()["restarts"]
    assert complete(server, HANG_TOKEN_ID) == (503, "engine_restarted")
    health = server.http.get("/health")
    assert health.status_code == 503
    assert health.json()["status"] == "restarting"
    assert eventually(server.is_ready)
    health = server.http.get("/health")
    assert health.status_code == 200
    assert health.json()["status"] == "ok"
    assert health.json()["silent_s"] == 0
    assert health.json()["restarts"] == restarts + 1
    assert re.fullmatch(
        r"The engine gave no sign of life for 1.5 s while 1 answers were open\. It was at "
        r"\S*fake_engine\.py, line \d+\. It is being started again\.",
        health.json()["events"][-1],
    )
    assert complete(server, 65) == (200, "")


DEAF_ENGINE = """
import ctypes, signal
from pathlib import Path
from chiplet.ipc.messages import Failed
from chiplet.ipc.sockets import Outbox
from chiplet.server.child import SERVER_SOCKET, begin_child, leave_stacks
folder = Path(begin_child().directory)
leave_stacks(folder)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
Outbox(folder / SERVER_SOCKET).send(Failed("deaf"))
ctypes.PyDLL(None).sleep(3600)  # with the interpreter's lock held
"""


async def test_an_engine_that_does_not_end_is_killed_and_says_where_it_was(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(processes, "STOP_LIMIT_S", 0.1)
    monkeypatch.setattr(processes, "STACK_LIMIT_S", 60.0)
    deaf = (sys.executable, "-c", DEAF_ENGINE)
    generation = Generation(engine_config(model_folder), ChildCommands(engine=deaf))
    try:
        while await generation.inbox.receive() != Failed("deaf"):
            pass
    finally:
        generation.stop()
    assert re.search(
        r"The engine process has not ended 0\.1 s after it was told to, and is killed\. "
        r"It was at <string>, line \d+\.",
        caplog.text,
    )


def test_what_a_fault_is_blamed_on_is_denied_at_the_restart(server: ServerProcess) -> None:
    assert complete(server, FAULT_TOKEN_ID) == (503, "engine_restarted")
    assert eventually(server.is_ready)
    health = server.http.get("/health").json()
    assert health["denied"] == [FAULTY]
    assert f"asked to break. It is being started again without {FAULTY}." in health["events"][-1]
    assert server.http.get("/debug/plan").json()["denied"] == [FAULTY]
    assert complete(server, FAULT_TOKEN_ID) == (200, "")
    # It stays denied when the engine dies of something else.
    assert complete(server, CRASH_TOKEN_ID) == (503, "engine_restarted")
    assert eventually(server.is_ready)
    assert server.http.get("/debug/plan").json()["denied"] == [FAULTY]


def test_a_recovery_shows_in_plan_health_and_metrics(server: ServerProcess) -> None:
    assert complete(server, RECOVER_TOKEN_ID) == (500, "engine_error")
    assert eventually(lambda: server.metric("chiplet_demotions_total") == 1)
    assert server.http.get("/debug/plan").json() == {"operations": ["recovered"]}
    health = server.http.get("/health").json()
    assert health["status"] == "ok"
    assert health["events"][-1] == "A fake provider raised; it is not used any more."


def test_a_body_too_large_is_refused_by_its_length(server: ServerProcess) -> None:
    response = server.http.post("/v1/completions", json={"prompt": "a" * (1 << 20)})
    assert response.status_code == 413
    error = response.json()["error"]
    assert error["code"] == "request_too_large"
    assert "1 MiB" in error["message"]
    assert "--max-body-mib" in error["message"]
    # Counted when the connection ends, which is a little later.
    name = 'chiplet_http_requests_total{path="/v1/completions",status="413"}'
    assert eventually(lambda: f"{name} " in server.http.get("/metrics").text)


def test_a_body_without_a_length_is_refused_while_it_comes(server: ServerProcess) -> None:
    address = server.url.removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1])), timeout=10) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        piece = b"a" * (1 << 18)
        for _ in range(5):
            connection.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
        # The last chunk never comes: nobody waits for it.
        answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer.lower()
    assert b"request_too_large" in answer


def test_a_body_just_small_enough_is_taken(server: ServerProcess) -> None:
    body = b'{"prompt": "a", "max_tokens": 1}'
    body += b" " * ((1 << 20) - len(body))
    headers = {"Content-Type": "application/json"}
    assert server.http.post("/v1/completions", content=body, headers=headers).status_code == 200


async def test_silence_counts_only_while_somebody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chiplet.server.health.WATCH_INTERVAL_S", 0)
    health = Health(now_s=lambda: now_s)
    num_open, now_s = 0, 0.0
    waiting = asyncio.create_task(wait_silence(health, 5, lambda: num_open))

    async def look_around() -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    await look_around()
    now_s = 100.0
    await look_around()
    num_open, now_s = 1, 104.0
    await look_around()
    assert not waiting.done()
    assert health.report(is_busy=True).silent_s == 4.0
    assert health.report(is_busy=False).silent_s == 0.0
    health.note_sign()
    now_s = 109.0
    await look_around()
    assert not waiting.done()
    now_s = 109.5
    await look_around()
    assert "5 s while 1 answers" in waiting.result()


async def test_without_a_limit_silence_is_never_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chiplet.server.health.WATCH_INTERVAL_S", 0)
    times = iter(range(0, 10**9, 10**6))
    health = Health(now_s=lambda: float(next(times)))
    waiting = asyncio.create_task(wait_silence(health, 0, lambda: 1))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not waiting.done()
    waiting.cancel()


def test_only_the_latest_events_are_kept() -> None:
    health = Health(status=EngineStatus.OK)
    for number in range(100):
        health.note_event(str(number))
    assert health.report(is_busy=False).events == tuple(map(str, range(80, 100)))
