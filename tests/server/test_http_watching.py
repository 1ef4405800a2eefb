"""Models, tokenizing, health, metrics, the plan and the description of the API."""

from __future__ import annotations

import openai
import pytest

from tests.server.server_process import ServerProcess


def test_models(server: ServerProcess) -> None:
    (model,) = server.openai.models.list().data
    assert (model.id, model.object, model.owned_by) == ("fake", "model", "chiplet")
    assert server.openai.models.retrieve("fake").id == "fake"
    for name in ("other", "some/one"):
        with pytest.raises(openai.NotFoundError) as caught:
            server.openai.models.retrieve(name)
        assert caught.value.code == "model_not_found"


def test_tokenize_and_detokenize(server: ServerProcess) -> None:
    text = "Grüße, 世界!"
    answer = server.http.post("/tokenize", json={"prompt": text, "model": None}).json()
    assert answer["count"] == len(answer["tokens"]) == len(text.encode())
    assert answer["max_model_len"] == 2048
    back = server.http.post("/detokenize", json={"tokens": answer["tokens"]}).json()
    assert back == {"prompt": text}


def test_tokenize_a_conversation(server: ServerProcess) -> None:
    messages = [{"role": "user", "content": "x"}]
    answer = server.http.post("/tokenize", json={"messages": messages}).json()
    text = server.http.post("/detokenize", json={"tokens": answer["tokens"]}).json()["prompt"]
    assert text == "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n"
    body = {"messages": messages, "add_generation_prompt": False}
    answer = server.http.post("/tokenize", json=body).json()
    text = server.http.post("/detokenize", json={"tokens": answer["tokens"]}).json()["prompt"]
    assert text == "<|im_start|>user\nx<|im_end|>\n"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {}),
        ("/tokenize", {"prompt": "x", "messages": [{"role": "user", "content": "x"}]}),
        ("/tokenize", {"prompt": "x", "model": "other"}),
        ("/detokenize", {"tokens": "x"}),
        ("/detokenize", {"tokens": [259]}),
        ("/detokenize", {"tokens": [-1]}),
    ],
)
def test_bad_texts_are_refused(server: ServerProcess, path: str, body: dict[str, object]) -> None:
    response = server.http.post(path, json=body)
    assert response.status_code in (400, 404)
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_health(server: ServerProcess) -> None:
    assert server.http.get("/livez").status_code == 200
    assert server.http.get("/readyz").status_code == 200


def test_plan(server: ServerProcess) -> None:
    assert server.http.get("/debug/plan").json() == {"operations": [], "denied": []}


def test_metrics_count_requests_answers_and_times(server: ServerProcess) -> None:
    def values() -> list[float]:
        return [
            server.metric('chiplet_http_requests_total{path="/v1/completions",status="200"}'),
            server.metric('chiplet_answers_total{finish_reason="length"}'),
            server.metric("chiplet_time_to_first_token_seconds_count"),
            server.metric("chiplet_inter_token_latency_seconds_count"),
            server.metric("chiplet_answer_latency_seconds_count"),
            server.metric("chiplet_output_tokens_total"),
        ]

    server.openai.completions.create(model="fake", prompt="abc", max_tokens=5)
    before = values()
    server.openai.completions.create(model="fake", prompt="abc", max_tokens=5, n=2)
    assert [new - old for new, old in zip(values(), before, strict=True)] == [1, 2, 2, 8, 2, 10]
    assert server.metric('chiplet_kv_pages{state="free"}') == 1024
    assert server.metric("chiplet_requests_running") == 0
    assert server.metric("chiplet_engine_restarts_total") == 0


def test_unknown_paths_share_one_label(server: ServerProcess) -> None:
    server.http.get("/nothing/here")
    assert "/nothing/here" not in server.http.get("/metrics").text
    assert server.metric('chiplet_http_requests_total{path="other",status="404"}') >= 1


def test_the_api_is_described(server: ServerProcess) -> None:
    paths = server.http.get("/openapi.json").json()["paths"]
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models", "/tokenize"} <= set(paths)
    assert server.http.get("/docs").status_code == 200
