"""Chat completions, as the official client sees them."""

from __future__ import annotations

import openai
import pytest

from tests.server.server_process import ServerProcess

HELLO = [{"role": "user", "content": "Hé!"}]
# The fake engine repeats the prompt up to its first end token.
ANSWER = "user\nHé!"
NUM_ANSWER_TOKENS = len("<|user\nHé!|>".encode()) - 2  # A special token counts once.


def test_whole_answer(server: ServerProcess) -> None:
    answer = server.openai.chat.completions.create(model="fake", messages=HELLO)
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == "fake"
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == ANSWER
    assert choice.finish_reason == "stop"
    assert choice.logprobs is None
    assert answer.usage is not None
    assert answer.usage.completion_tokens == NUM_ANSWER_TOKENS
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + NUM_ANSWER_TOKENS


def test_streamed_answer_is_the_whole_one_in_pieces(server: ServerProcess) -> None:
    chunks = list(server.openai.chat.completions.create(model="fake", messages=HELLO, stream=True))
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(texts) == ANSWER
    assert "\ufffd" not in "".join(texts), "half a character was sent"
    assert len([text for text in texts if text]) > 3, "the answer came in one piece"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert all(chunk.usage is None for chunk in chunks)


def test_stream_is_server_sent_events_with_an_end(server: ServerProcess) -> None:
    body = {"model": "fake", "messages": HELLO, "stream": True}
    response = server.http.post("/v1/chat/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = response.text.split("\n\n")
    assert events[-1] == ""
    assert events[-2] == "data: [DONE]"
    assert all(event.startswith("data: {") for event in events[:-2])


def test_usage_of_a_stream_comes_last_and_only_if_asked_for(server: ServerProcess) -> None:
    chunks = list(
        server.openai.chat.completions.create(
            model="fake", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
    )
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == NUM_ANSWER_TOKENS


@pytest.mark.parametrize("is_streamed", [False, True])
def test_several_answers(server: ServerProcess, is_streamed: bool) -> None:
    texts = {0: "", 1: "", 2: ""}
    answers = server.openai.chat.completions.create(
        model="fake", messages=HELLO, n=3, stream=is_streamed
    )
    if is_streamed:
        for chunk in answers:
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
    else:
        texts = {choice.index: choice.message.content for choice in answers.choices}
        assert answers.usage.completion_tokens == 3 * NUM_ANSWER_TOKENS
    assert texts == {0: ANSWER, 1: ANSWER, 2: ANSWER}


@pytest.mark.parametrize("is_streamed", [False, True])
def test_logprobs(server: ServerProcess, is_streamed: bool) -> None:
    answer = server.openai.chat.completions.create(
        model="fake", messages=HELLO, logprobs=True, top_logprobs=2, stream=is_streamed
    )
    if is_streamed:
        choices = [chunk.choices[0] for chunk in answer]
        content = [
            each for choice in choices if choice.logprobs for each in choice.logprobs.content
        ]
    else:
        content = answer.choices[0].logprobs.content
    # The end token is no part of the message; the special token at the beginning is.
    assert b"".join(bytes(each.bytes) for each in content) == b"<|im_start|>" + ANSWER.encode()
    letter = content[1]
    assert (letter.token, letter.logprob) == ("u", -0.5)
    assert [(top.token, top.logprob) for top in letter.top_logprobs] == [("u", -0.5), ("v", -1.5)]


def test_stop_strings_end_the_answer_and_its_computation(server: ServerProcess) -> None:
    aborted = 'chiplet_answers_total{finish_reason="stop"}'
    before = server.metric(aborted)
    answer = server.openai.chat.completions.create(
        model="fake", messages=HELLO, stop=["r\nH", "never"], extra_body={"ignore_eos": True}
    )
    assert answer.choices[0].message.content == "use"
    assert answer.choices[0].finish_reason == "stop"
    assert server.metric(aborted) == before + 1


def test_length_limits(server: ServerProcess) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        answer = server.openai.chat.completions.create(model="fake", messages=HELLO, **{name: 3})
        assert answer.choices[0].message.content == "us"  # After one special token.
        assert answer.choices[0].finish_reason == "length"


def test_without_a_limit_the_context_is_filled(server: ServerProcess) -> None:
    answer = server.openai.chat.completions.create(
        model="fake",
        messages=[{"role": "user", "content": "x" * 1990}],
        extra_body={"ignore_eos": True},
    )
    assert answer.usage is not None
    assert answer.usage.total_tokens == 2048
    assert answer.choices[0].finish_reason == "length"


def test_extensions(server: ServerProcess) -> None:
    answer = server.openai.chat.completions.create(
        model="fake",
        messages=HELLO,
        max_tokens=50,
        extra_body={
            "top_k": 5,
            "min_p": 0.1,
            "repetition_penalty": 1.1,
            "min_tokens": 1,
            "ignore_eos": True,
            "skip_special_tokens": False,
            "stop_token_ids": [ord("e")],
        },
    )
    # In this vocabulary printable ASCII comes in order, from '!' at 0.
    assert answer.choices[0].message.content is not None
    assert answer.choices[0].message.content.startswith("<|im_start|>us")


def test_every_nullable_field_may_be_null(server: ServerProcess) -> None:
    names = [
        "audio",
        "frequency_penalty",
        "function_call",
        "functions",
        "ignore_eos",
        "logit_bias",
        "logprobs",
        "max_completion_tokens",
        "max_tokens",
        "metadata",
        "min_p",
        "modalities",
        "n",
        "parallel_tool_calls",
        "prediction",
        "presence_penalty",
        "reasoning_effort",
        "repetition_penalty",
        "response_format",
        "seed",
        "service_tier",
        "stop",
        "store",
        "stream",
        "stream_options",
        "temperature",
        "tool_choice",
        "tools",
        "top_k",
        "top_logprobs",
        "top_p",
        "user",
        "web_search_options",
    ]
    message = {"role": "user", "content": "Hé!", "name": None}
    said = {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "tool_calls": None,
        "audio": None,
    }
    body = {"model": None, "messages": [message, said], **dict.fromkeys(names)}
    response = server.http.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    assert response.json()["choices"][0]["message"]["content"] == ANSWER


def test_an_answer_of_ours_may_be_sent_back(server: ServerProcess) -> None:
    first = server.openai.chat.completions.create(model="fake", messages=HELLO)
    said = first.choices[0].message.model_dump()
    again = server.openai.chat.completions.create(model="fake", messages=[*HELLO, said, *HELLO])
    assert again.choices[0].message.content == ANSWER


def test_fields_without_effect_are_accepted(server: ServerProcess) -> None:
    answer = server.openai.chat.completions.create(
        model="fake",
        messages=HELLO,
        user="me",
        store=True,
        metadata={"a": "b"},
        service_tier="auto",
        parallel_tool_calls=False,
        response_format={"type": "text"},
        tools=[],
        seed=7,
        logit_bias={"5": 1.5},
    )
    assert answer.choices[0].message.content == ANSWER


def test_parts_of_text(server: ServerProcess) -> None:
    parts = [{"type": "text", "text": "Hé!"}]
    answer = server.openai.chat.completions.create(
        model="fake", messages=[{"role": "user", "content": parts}]
    )
    assert answer.choices[0].message.content == ANSWER


def test_developer_is_another_name_of_system(server: ServerProcess) -> None:
    answer = server.openai.chat.completions.create(
        model="fake", messages=[{"role": "developer", "content": "x"}]
    )
    assert answer.choices[0].message.content == "system\nx"


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
    ],
)
def test_what_is_not_served_is_refused(
    server: ServerProcess, extra: dict[str, object], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        server.openai.chat.completions.create(model="fake", messages=HELLO, extra_body=extra)
    assert caught.value.param == param
    assert caught.value.code == "unsupported_parameter"
    assert param in caught.value.message


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]},
        {"role": "tool", "content": "5", "tool_call_id": "1"},
        {"role": "assistant", "tool_calls": [{"id": "1"}]},
    ],
)
def test_messages_that_are_not_text_are_refused(
    server: ServerProcess, message: dict[str, object]
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        server.openai.chat.completions.create(model="fake", messages=[message])
    assert caught.value.param is not None
    assert caught.value.param.startswith("messages[0].")
