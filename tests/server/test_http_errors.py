"""Errors: the right status, the nested envelope, and words that help."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.server.server_process import ServerProcess, engine_config, running_server

CHAT = {"messages": [{"role": "user", "content": "x"}]}


def envelope(response: httpx.Response) -> dict[str, Any]:
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    return body["error"]


@pytest.mark.parametrize(
    ("path", "body", "param", "code", "words"),
    [
        ("chat/completions", {}, "messages", "missing_required_parameter", "messages"),
        (
            "chat/completions",
            {"messages": None},
            "messages",
            "missing_required_parameter",
            "'messages'",
        ),
        ("completions", {"prompt": None}, "prompt", "missing_required_parameter", "'prompt'"),
        (
            "completions",
            {"prompt": "a" * 10_000_000},
            "prompt",
            "context_length_exceeded",
            "characters",
        ),
        ("chat/completions", {"messages": []}, "messages", "invalid_value", "at least 1"),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": 5}]},
            "messages[0].content",
            "invalid_type",
            "string; or",
        ),
        (
            "chat/completions",
            {"messages": [{"content": "x"}]},
            "messages[0].role",
            "missing_required_parameter",
            "role",
        ),
        (
            "chat/completions",
            {"messages": [{"role": "king", "content": "x"}]},
            "messages[0].role",
            "invalid_value",
            "'user'",
        ),
        (
            "chat/completions",
            {**CHAT, "temprature": 1},
            "temprature",
            "unknown_parameter",
            "'temperature'",
        ),
        (
            "chat/completions",
            {**CHAT, "temperature": "hot"},
            "temperature",
            "invalid_type",
            "number",
        ),
        ("chat/completions", {**CHAT, "temperature": -1}, "temperature", "invalid_value", "0 to"),
        ("chat/completions", {**CHAT, "top_p": 1.5}, "top_p", "invalid_value", "0 to 1"),
        ("chat/completions", {**CHAT, "max_tokens": 0}, "max_tokens", "invalid_value", "1 to"),
        ("chat/completions", {**CHAT, "n": 0}, "n", "invalid_value", "greater"),
        ("chat/completions", {**CHAT, "stream": "yes"}, "stream", "invalid_type", "boolean"),
        (
            "chat/completions",
            {**CHAT, "top_logprobs": 2},
            "top_logprobs",
            "invalid_value",
            "logprobs",
        ),
        (
            "chat/completions",
            {**CHAT, "logprobs": True, "top_logprobs": 99},
            "top_logprobs",
            "invalid_value",
            "32",
        ),
        (
            "chat/completions",
            {**CHAT, "stream_options": {"include_usage": True}},
            "stream_options",
            "invalid_value",
            "stream",
        ),
        (
            "chat/completions",
            {**CHAT, "logit_bias": {"x": 1}},
            "logit_bias",
            "invalid_value",
            "token",
        ),
        (
            "chat/completions",
            {**CHAT, "logit_bias": {"9999": 1}},
            "logit_bias",
            "invalid_value",
            "258",
        ),
        (
            "chat/completions",
            {**CHAT, "max_tokens": 3, "max_completion_tokens": 4},
            "max_tokens",
            "invalid_value",
            "one of them",
        ),
        ("completions", {}, "prompt", "missing_required_parameter", "prompt"),
        ("completions", {"prompt": []}, "prompt", "invalid_value", "empty"),
        ("completions", {"prompt": ""}, "prompt", "invalid_value", "empty"),
        ("completions", {"prompt": [1, 999]}, "prompt", "invalid_value", "258"),
        ("completions", {"prompt": [1, -5]}, "prompt", "invalid_value", "-5"),
        ("completions", {"prompt": [1, 2**40]}, "prompt", "invalid_type", "less than"),
        ("completions", {"prompt": ["a", 1]}, "prompt", "invalid_type", "prompt[1]: "),
        ("completions", {"prompt": [[]]}, "prompt", "invalid_value", "empty"),
        ("completions", {"prompt": "x", "best_of": 3}, "best_of", "unsupported_parameter", "n"),
        (
            "completions",
            {"prompt": "x", "suffix": "y"},
            "suffix",
            "unsupported_parameter",
            "suffix",
        ),
        ("completions", {"prompt": "x", "logprobs": -1}, "logprobs", "invalid_value", "0"),
        ("completions", {"prompt": "a\ud800"}, None, "invalid_value", "Unicode"),
    ],
)
def test_bad_bodies(
    server: ServerProcess,
    path: str,
    body: dict[str, Any],
    param: str | None,
    code: str,
    words: str,
) -> None:
    # Written as ASCII, so that lone surrogates can be sent.
    response = server.http.post(
        f"/v1/{path}", content=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    error = envelope(response)
    assert response.status_code == 400
    assert error["type"] == "invalid_request_error"
    assert (error["param"], error["code"]) == (param, code), error
    assert words in error["message"]


def test_bodies_that_are_no_json_objects(server: ServerProcess) -> None:
    headers = {"Content-Type": "application/json"}
    broken = server.http.post("/v1/completions", content=b'{"prompt": ', headers=headers)
    assert (broken.status_code, envelope(broken)["code"]) == (400, "invalid_json")
    garbage = server.http.post("/v1/completions", content=b"\xff\xfe\x00", headers=headers)
    assert (garbage.status_code, envelope(garbage)["code"]) == (400, "invalid_json")
    for body in ({}, {"prompt": "a", "messages": [{"role": "user", "content": "x"}]}):
        neither = server.http.post("/tokenize", json=body)
        assert neither.status_code == 400
        assert "either 'prompt' or 'messages'" in envelope(neither)["message"]
    for content in (b"[]", b"5", b"null", b""):
        response = server.http.post("/v1/completions", content=content, headers=headers)
        assert response.status_code == 400, content
        assert envelope(response)["type"] == "invalid_request_error"


def test_unknown_paths_and_methods(server: ServerProcess) -> None:
    missing = server.http.get("/v2/nothing")
    assert (missing.status_code, envelope(missing)["code"]) == (404, "not_found")
    wrong = server.http.get("/v1/completions")
    assert (wrong.status_code, envelope(wrong)["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"


def test_unknown_model(server: ServerProcess) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        server.openai.completions.create(model="gpt-9", prompt="x")
    assert caught.value.code == "model_not_found"
    assert "'fake'" in caught.value.message


@pytest.mark.parametrize("is_streamed", [False, True])
def test_too_long_prompts(server: ServerProcess, is_streamed: bool) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        server.openai.completions.create(model="fake", prompt="a" * 3000, stream=is_streamed)
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "prompt"
    assert "2048" in caught.value.message
    assert "3000" in caught.value.message


def test_too_long_answers(server: ServerProcess) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        server.openai.chat.completions.create(
            model="fake", messages=CHAT["messages"], max_tokens=2048
        )
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "max_tokens"
    with pytest.raises(openai.BadRequestError) as caught:
        server.openai.chat.completions.create(
            model="fake", messages=[{"role": "user", "content": "x" * 3000}]
        )
    assert caught.value.param == "messages"


@pytest.mark.parametrize("is_streamed", [False, True])
def test_an_engine_error_of_one_request_is_a_500(server: ServerProcess, is_streamed: bool) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        # Token 0 makes the fake engine fail this request.
        server.openai.completions.create(model="fake", prompt=[0, 5], stream=is_streamed)
    assert caught.value.type == "engine_error"
    assert "asked to fail" in caught.value.message
    assert server.is_ready()


def test_an_engine_error_after_the_first_token_ends_the_stream(server: ServerProcess) -> None:
    answer = server.openai.completions.create(model="fake", prompt=[[5, 6], [0, 5]], stream=True)
    with pytest.raises(openai.APIError) as caught:
        list(answer)
    assert caught.value.code == "engine_error"
    assert "asked to fail" in caught.value.message


def test_full_queue(model_folder: Path) -> None:
    config = engine_config(model_folder, max_running_requests=1, max_queued_requests=1)
    long = {"prompt": "ab", "max_tokens": 2000, "ignore_eos": True, "stream": True}
    with (
        running_server(config) as server,
        server.http.stream("POST", "/v1/completions", json=long) as first,
    ):
        lines = first.iter_lines()
        next(lines)
        # The second waits, so nothing of it comes; a third is one too many.
        with httpx.Client(base_url=server.url) as impatient:
            with pytest.raises(httpx.ReadTimeout):
                impatient.post("/v1/completions", json={"prompt": "x"}, timeout=0.3)
            with pytest.raises(openai.BadRequestError) as caught:
                server.openai.completions.create(model="fake", prompt="x", n=3)
            assert "2 at once" in caught.value.message
            with pytest.raises(openai.RateLimitError) as refused:
                server.openai.completions.create(model="fake", prompt="x", n=2)
        assert next(lines) == "", "the first is still being answered"
        assert refused.value.code == "queue_full"
        assert int(refused.value.response.headers["retry-after"]) >= 1


def test_api_key(model_folder: Path) -> None:
    with running_server(engine_config(model_folder), api_key="sesame") as server:
        assert server.openai.models.list().data[0].id == "fake"
        stranger = openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0)
        with stranger, pytest.raises(openai.AuthenticationError) as caught:
            stranger.completions.create(model="fake", prompt="x")
        assert caught.value.code == "invalid_api_key"
        for path in ("/v1/models", "/metrics", "/debug/plan", "/docs", "/nowhere"):
            response = httpx.get(server.url + path)
            assert (response.status_code, envelope(response)["code"]) == (401, "invalid_api_key")
        for path in ("/livez", "/readyz"):
            assert httpx.get(server.url + path).status_code == 200
