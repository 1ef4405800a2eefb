"""The detokenizer and the messages, without processes."""

from __future__ import annotations

import stat
from pathlib import Path

import msgspec
import numpy as np
import pytest

from chiplet.ipc.messages import (
    AddRequest,
    AnswerOpened,
    StepTokens,
    ToDetokenizer,
    ToEngine,
    pack_token_ids,
    unpack_token_ids,
)
from chiplet.ipc.sockets import Inbox, Outbox
from chiplet.request import FinishReason, RequestOutput, TokenLogprobs
from chiplet.sampling_params import SamplingParams
from chiplet.server.detokenizer import Detokenizer
from chiplet.text.tokenizer import Tokenizer, load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(model_folder: Path) -> Tokenizer:
    return load_tokenizer(model_folder)


def output(
    token_ids: list[int], total: int, finish_reason: FinishReason | None = None, **more: object
) -> RequestOutput:
    values: dict[str, object] = {
        "request_id": "a",
        "token_ids": tuple(token_ids),
        "num_prompt_tokens": 3,
        "num_cached_tokens": 0,
        "num_output_tokens": total,
        "finish_reason": finish_reason,
        **more,
    }
    return RequestOutput(**values)  # type: ignore[arg-type]


def opened(*stop: str, keeps_stop: bool = False) -> AnswerOpened:
    return AnswerOpened("a", stop, True, keeps_stop, True)


def step(*outputs: RequestOutput, new: AnswerOpened | None = None, closed: str = "") -> StepTokens:
    return StepTokens((new,) if new else (), outputs, tuple(closed))


def test_text_comes_as_its_characters_are_whole(tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(tokenizer)
    first, second = tokenizer.encode("é")
    text, stopped = detokenizer.take(step(output([first], 1), new=opened()))
    assert (text.deltas[0].text, stopped) == ("", ())
    text, _ = detokenizer.take(step(output([second], 2, FinishReason.LENGTH)))
    assert text.deltas[0].text == "é"
    assert text.deltas[0].finish_reason is FinishReason.LENGTH
    assert text.deltas[0].num_output_tokens == 2


def test_a_stop_string_ends_the_answer_and_what_follows_is_dropped(tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(tokenizer)
    a, b, c = tokenizer.encode("abc")
    text, stopped = detokenizer.take(step(output([a], 1), output([b], 2), new=opened("bc")))
    assert [delta.text for delta in text.deltas] == ["a", ""]
    assert stopped == ()
    text, stopped = detokenizer.take(step(output([c], 3)))
    assert text.deltas[0].finish_reason is FinishReason.STOP
    assert (text.deltas[0].text, text.deltas[0].num_output_tokens) == ("", 3)
    assert stopped == ("a",)
    late, stopped = detokenizer.take(step(output([a], 4)))
    assert (late.deltas, stopped) == ((), ())


def test_an_answer_that_ends_anyway_needs_no_abort(tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(tokenizer)
    a, b = tokenizer.encode("ab")
    text, stopped = detokenizer.take(step(output([a, b], 2, FinishReason.LENGTH), new=opened("b")))
    assert text.deltas[0].finish_reason is FinishReason.STOP
    assert stopped == ()


@pytest.mark.parametrize(("keeps_stop", "expected"), [(False, "a"), (True, "ab")])
def test_the_end_token_is_no_text_unless_wanted(
    tokenizer: Tokenizer, keeps_stop: bool, expected: str
) -> None:
    a, b = tokenizer.encode("ab")
    logprobs = tuple(TokenLogprobs(token_id=each, logprob=-1.0) for each in (a, b))
    end = output([a, b], 2, FinishReason.STOP, stop_token_id=b, logprobs=logprobs)
    text, _ = Detokenizer(tokenizer).take(step(end, new=opened(keeps_stop=keeps_stop)))
    assert text.deltas[0].text == expected
    assert "".join(each.text for each in text.deltas[0].logprobs) == expected


def test_aborted_answers_are_forgotten(tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(tokenizer)
    (a,) = tokenizer.encode("a")
    detokenizer.take(step(output([a], 1), new=opened(), closed="a"))
    assert detokenizer.take(step(output([a], 2)))[0].deltas == ()


def test_messages_survive_the_way(tmp_path: Path) -> None:
    inbox: Inbox[AddRequest] = Inbox(tmp_path / "s.sock", ToEngine)
    outbox = Outbox(tmp_path / "s.sock")
    try:
        assert stat.S_IMODE((tmp_path / "s.sock").stat().st_mode) == 0o600
        prompt = np.array([1, 2, 2**31 - 1], dtype=np.int32)
        sampling = SamplingParams(
            temperature=0.5, logit_bias={5: -1.0}, stop=("x",), seed=2**64 - 1
        )
        sent = AddRequest("r", pack_token_ids(prompt), sampling, True)
        outbox.send(sent)
        received = inbox.receive()
        assert received == sent
        assert unpack_token_ids(received.prompt).tolist() == prompt.tolist()
        assert list(inbox.pending()) == []
    finally:
        outbox.close()
        inbox.close()


def test_a_steps_message_keeps_every_value() -> None:
    logprobs = (TokenLogprobs(token_id=1, logprob=-0.5, top_token_ids=(1,), top_logprobs=(-0.5,)),)
    sent = step(
        output([7], 1, FinishReason.ERROR, logprobs=logprobs, prompt_logprobs=(), error="why"),
        new=opened("x"),
        closed="a",
    )
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(sent), type=ToDetokenizer) == sent
