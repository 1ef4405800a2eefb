"""Text as it streams: put together it is the whole text, and nothing shown is taken back."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from chiplet.text.answer_text import AnswerText, TextDelta, TextOptions
from chiplet.text.detokenizer import IncrementalDetokenizer
from chiplet.text.stop_strings import StopStrings
from chiplet.text.tokenizer import Tokenizer, load_tokenizer
from tests.unit.vocabularies import (
    default_backend,
    train_sentencepiece,
    write_byte_level_gguf,
    write_sentencepiece_gguf,
)

EMOJI = "\U0001f468\u200d\U0001f469\u200d\U0001f467"


@pytest.fixture(scope="module")
def backend() -> Backend:
    return default_backend()


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory, backend: Backend) -> Tokenizer:
    folder: Path = tmp_path_factory.mktemp("byte_level")
    return load_tokenizer(write_byte_level_gguf(folder / "m.gguf", backend))


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder: Path = tmp_path_factory.mktemp("pieces")
    return load_tokenizer(write_sentencepiece_gguf(folder / "m.gguf", train_sentencepiece()))


@settings(max_examples=200, deadline=None)
@given(data=st.data(), is_hiding=st.booleans())
def test_random_tokens_stream_into_the_whole_text(
    byte_level: Tokenizer, pieces: Tokenizer, backend: Backend, data: st.DataObject, is_hiding: bool
) -> None:
    for tokenizer in (byte_level, pieces):
        # The bytes alone come first in both vocabularies: half characters are frequent.
        ids = data.draw(st.lists(st.integers(0, 300), max_size=60))
        detokenizer = IncrementalDetokenizer(tokenizer, skip_special_tokens=is_hiding)
        whole = tokenizer.decode(ids, skip_special_tokens=is_hiding)
        shown = ""
        while ids:
            count = data.draw(st.integers(1, len(ids)))
            shown += detokenizer.push(ids[:count])
            assert whole.startswith(shown)
            ids = ids[count:]
        assert shown + detokenizer.push([], is_last=True) == whole


@settings(max_examples=100, deadline=None)
@given(ids=st.lists(st.integers(0, 699), max_size=60), is_hiding=st.booleans())
def test_decoding_agrees_with_the_library(
    byte_level: Tokenizer, backend: Backend, ids: list[int], is_hiding: bool
) -> None:
    theirs = backend.decode(ids, skip_special_tokens=is_hiding)
    assert byte_level.decode(ids, skip_special_tokens=is_hiding) == theirs


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=40))
def test_text_survives_token_by_token(byte_level: Tokenizer, pieces: Tokenizer, text: str) -> None:
    for tokenizer in (byte_level, pieces):
        if "\u2581" in text and tokenizer is pieces:
            continue  # sentencepiece's own sign for a space
        detokenizer = IncrementalDetokenizer(tokenizer)
        ids = tokenizer.encode(text, add_special_tokens=False)
        deltas = [detokenizer.push([each]) for each in ids]
        assert "\ufffd" not in "".join(deltas).replace(text, "")
        assert "".join(deltas) + detokenizer.push([], is_last=True) == text


def test_half_a_character_waits(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("\U0001f600")
    assert len(ids) == 4
    detokenizer = IncrementalDetokenizer(byte_level)
    assert [detokenizer.push([each]) for each in ids] == ["", "", "", "\U0001f600"]
    assert detokenizer.push(ids[:2]) == ""
    assert detokenizer.push([], is_last=True) == "\ufffd"


def test_the_leading_space_of_sentencepiece(pieces: Tokenizer) -> None:
    ids = pieces.encode("the License", add_special_tokens=False)
    assert IncrementalDetokenizer(pieces).push(ids) == "the License"
    kept = IncrementalDetokenizer(pieces, keeps_leading_space=True)
    assert kept.push(ids) == " the License"
    # A token that is skipped does not use up the space that is due.
    after_special = IncrementalDetokenizer(pieces)
    assert after_special.push([1]) + after_special.push(ids) == "the License"


def _oracle(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The outcome when the text comes one character at a time."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            stop = max(ending, key=len)
            return text[: end - len(stop)], stop
    return text, None


@settings(max_examples=500, deadline=None)
@given(
    text=st.text("ab\u00e9", max_size=30),
    stops=st.lists(st.text("ab\u00e9", min_size=1, max_size=4), max_size=3),
    data=st.data(),
    is_included=st.booleans(),
)
def test_stops_are_found_however_the_text_is_cut(
    text: str, stops: list[str], data: st.DataObject, is_included: bool
) -> None:
    expected, stop = _oracle(text, stops)
    watcher = StopStrings(stops, is_included=is_included)
    shown, found, rest = "", None, text
    while rest and found is None:
        count = data.draw(st.integers(1, len(rest)))
        result = watcher.push(rest[:count], is_last=count == len(rest))
        shown, found, rest = shown + result.text, result.stop, rest[count:]
    assert found == stop
    assert shown == expected + (stop if stop and is_included else "")


def test_only_what_could_become_a_stop_is_held() -> None:
    watcher = StopStrings(["END", "\n\n"])
    assert watcher.push("some E").text == "some "
    assert watcher.push("N").text == ""
    assert watcher.push("Xx\n").text == "ENXx"
    assert watcher.push("y").text == "\ny"
    assert watcher.push("EN", is_last=True).text == "EN"


def test_an_answer_ends_at_its_stop_string(byte_level: Tokenizer) -> None:
    answer = AnswerText(byte_level, TextOptions(stop=("STOP",)))
    ids = byte_level.encode("one STOP two")
    deltas = [answer.push([each]) for each in ids]
    assert "".join(delta.text for delta in deltas) == "one "
    stopped = [delta for delta in deltas if delta.is_stopped]
    assert [delta.stop for delta in stopped] == ["STOP"]
    assert answer.push(ids, is_last=True) == TextDelta("")


def test_the_stop_string_is_kept_on_request(byte_level: Tokenizer) -> None:
    options = TextOptions(stop=("STOP",), include_stop_in_output=True)
    delta = AnswerText(byte_level, options).push(byte_level.encode("one STOP two"))
    assert delta == TextDelta("one STOP", is_stopped=True, stop="STOP")


def test_what_was_held_back_comes_with_the_last_token(byte_level: Tokenizer) -> None:
    answer = AnswerText(byte_level, TextOptions(stop=("\u00e9\u00e9",)))
    ids = byte_level.encode("a\u00e9")
    assert answer.push(ids).text == "a"
    assert answer.push([], is_last=True) == TextDelta("\u00e9")


def test_the_end_token_is_no_text(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("Bye")
    end = byte_level.encode("x")[0]  # a plain token, made a stop by `stop_token_ids`
    shown = AnswerText(byte_level, TextOptions())
    assert shown.push([*ids, end], is_last=True, stop_token_id=end).text == "Bye"
    kept = AnswerText(byte_level, TextOptions(include_stop_in_output=True))
    assert kept.push([*ids, end], is_last=True, stop_token_id=end).text == "Byex"
    # An end token among the others, which did not end the answer, is text.
    among = AnswerText(byte_level, TextOptions())
    assert among.push([end, *ids], is_last=True, stop_token_id=end).text == "xBye"


def test_special_tokens_are_shown_on_request(byte_level: Tokenizer) -> None:
    ids = [1, *byte_level.encode("hi"), 2]
    assert AnswerText(byte_level, TextOptions()).push(ids).text == "hi"
    shown = AnswerText(byte_level, TextOptions(skip_special_tokens=False)).push(ids).text
    assert shown == "<|im_start|>hi<|im_end|>"


def test_joined_emoji_arrive_character_by_character(byte_level: Tokenizer) -> None:
    answer = AnswerText(byte_level, TextOptions())
    deltas = [answer.push([each]).text for each in byte_level.encode(EMOJI)]
    assert [delta for delta in deltas if delta] == list(EMOJI)
