"""A client that leaves frees what its answers held."""

from __future__ import annotations

import httpx
import pytest

from tests.server.server_process import ServerProcess, eventually

LONG = {"prompt": "ab" * 20, "max_tokens": 2000, "ignore_eos": True, "n": 2}
ABORTED = 'chiplet_answers_total{finish_reason="abort"}'


def is_idle(server: ServerProcess) -> bool:
    return (
        server.metric("chiplet_requests_running") == 0
        and server.metric('chiplet_kv_pages{state="used"}') == 0
    )


def test_leaving_a_stream(server: ServerProcess) -> None:
    before = server.metric(ABORTED) if ABORTED in server.http.get("/metrics").text else 0
    with server.http.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as stream:
        lines = stream.iter_lines()
        assert next(lines).startswith("data: ")
        assert eventually(lambda: server.metric("chiplet_requests_running") == 2)
        assert server.metric('chiplet_kv_pages{state="used"}') >= 6
    assert eventually(lambda: is_idle(server))
    assert server.metric(ABORTED) == before + 2


def test_leaving_before_the_answer(server: ServerProcess) -> None:
    before = server.metric(ABORTED) if ABORTED in server.http.get("/metrics").text else 0
    with httpx.Client(base_url=server.url) as client, pytest.raises(httpx.ReadTimeout):
        client.post("/v1/completions", json=LONG, timeout=0.3)
    assert eventually(lambda: is_idle(server))
    assert server.metric(ABORTED) == before + 2


def test_a_stop_string_frees_too(server: ServerProcess) -> None:
    answer = server.openai.completions.create(
        model="fake", prompt="abc", max_tokens=2000, stop="cab", extra_body={"ignore_eos": True}
    )
    assert answer.choices[0].text == "ab"
    assert eventually(lambda: is_idle(server))
