"""Completions, as the official client sees them."""

from __future__ import annotations

import pytest

from tests.server.server_process import ServerProcess


def test_default_length_is_sixteen(server: ServerProcess) -> None:
    answer = server.openai.completions.create(model="fake", prompt="abc")
    assert answer.object == "text_completion"
    assert answer.choices[0].text == "abcabcabcabcabca"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 16)


def test_default_length_gives_way_to_a_long_prompt(server: ServerProcess) -> None:
    answer = server.openai.completions.create(model="fake", prompt="a" * 2046)
    assert answer.choices[0].text == "aa"


@pytest.mark.parametrize("is_streamed", [False, True])
def test_prompts_and_answers_have_their_places(server: ServerProcess, is_streamed: bool) -> None:
    answer = server.openai.completions.create(
        model="fake", prompt=["ab", "xyz"], n=2, max_tokens=4, stream=is_streamed
    )
    texts = dict.fromkeys(range(4), "")
    for part in answer if is_streamed else [answer]:
        for choice in part.choices:
            texts[choice.index] += choice.text
    assert texts == {0: "abab", 1: "abab", 2: "xyzx", 3: "xyzx"}


def test_prompts_of_token_ids(server: ServerProcess) -> None:
    ids = server.http.post("/tokenize", json={"prompt": "abc"}).json()["tokens"]
    one = server.openai.completions.create(model="fake", prompt=ids, max_tokens=3)
    assert one.choices[0].text == "abc"
    two = server.openai.completions.create(model="fake", prompt=[ids, ids[:1]], max_tokens=2)
    assert [choice.text for choice in two.choices] == ["ab", "aa"]


@pytest.mark.parametrize("is_streamed", [False, True])
def test_echo_with_logprobs_covers_the_prompt(server: ServerProcess, is_streamed: bool) -> None:
    answer = server.openai.completions.create(
        model="fake", prompt="abc", echo=True, logprobs=2, max_tokens=2, stream=is_streamed
    )
    choices = [part.choices[0] for part in (answer if is_streamed else [answer])]
    assert "".join(choice.text for choice in choices) == "abcab"
    logprobs = [choice.logprobs for choice in choices if choice.logprobs]
    assert [each for part in logprobs for each in part.tokens] == ["a", "b", "c", "a", "b"]
    assert [each for part in logprobs for each in part.token_logprobs] == [None] + [-0.5] * 4
    assert [each for part in logprobs for each in part.text_offset] == [0, 1, 2, 3, 4]
    tops = [each for part in logprobs for each in part.top_logprobs]
    assert tops[:2] == [None, {"b": -0.5, "c": -1.5}]
    assert len(tops) == 5


def test_echo_without_new_tokens_scores_the_prompt(server: ServerProcess) -> None:
    answer = server.openai.completions.create(
        model="fake", prompt="abc", echo=True, logprobs=0, max_tokens=0
    )
    (choice,) = answer.choices
    assert choice.text == "abc"
    assert choice.logprobs is not None
    assert choice.logprobs.tokens == ["a", "b", "c"]
    assert choice.finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 0


def test_offsets_count_characters_not_pieces_of_them(server: ServerProcess) -> None:
    answer = server.openai.completions.create(
        model="fake", prompt="a\N{GRINNING FACE}b", echo=True, logprobs=0, max_tokens=0
    )
    (choice,) = answer.choices
    assert choice.logprobs is not None
    assert choice.logprobs.tokens == ["a", *["\ufffd"] * 4, "b"]
    # The character's four bytes stand at 1; only "b" comes after it.
    assert choice.logprobs.text_offset == [0, 1, 1, 1, 1, 2]


def test_logprobs_are_numbers(server: ServerProcess) -> None:
    answer = server.openai.completions.create(model="fake", prompt="ab", logprobs=1, max_tokens=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["a", "b"]
    assert logprobs.token_logprobs == [-0.5, -0.5]
    assert logprobs.top_logprobs == [{"a": -0.5}, {"b": -0.5}]


def test_every_nullable_field_may_be_null(server: ServerProcess) -> None:
    names = [
        "best_of",
        "echo",
        "frequency_penalty",
        "logit_bias",
        "logprobs",
        "max_tokens",
        "n",
        "presence_penalty",
        "seed",
        "stop",
        "stream",
        "stream_options",
        "suffix",
        "temperature",
        "top_p",
        "user",
    ]
    response = server.http.post("/v1/completions", json={"prompt": "ab", **dict.fromkeys(names)})
    assert response.status_code == 200, response.text
    assert response.json()["choices"][0]["text"] == "ab" * 8


def test_cached_tokens_are_reported_and_a_shared_prefix_is_computed_once(
    server: ServerProcess,
) -> None:
    computed = "chiplet_computed_prompt_tokens_total"
    before = server.metric(computed)
    prefix = "This prefix is shared by all. " * 34 + "1234"
    assert len(prefix) == 1024
    answer = server.openai.completions.create(
        model="fake", prompt=[f"{prefix} {index:02d}" for index in range(32)], max_tokens=1
    )
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens == 32 * 1027
    assert answer.usage.prompt_tokens_details.cached_tokens == 31 * 1024
    assert server.metric(computed) - before == 1024 + 32 * 3
