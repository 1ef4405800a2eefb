"""LLM over an engine whose tokens are known, without a model."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.server.server_process import write_byte_tokenizer

from chiplet import llm as llm_module
from chiplet import worker
from chiplet.config import EngineConfig
from chiplet.engine import Engine
from chiplet.errors import ConfigError, EngineError, RequestError
from chiplet.llm import LLM
from chiplet.memory.kv_manager import KvManager
from chiplet.request import FinishReason, RequestLimits
from chiplet.sampling_params import SamplingParams
from chiplet.scheduler.scheduler import Scheduler
from chiplet.testing.fake_runner import FakeRunner
from chiplet.worker import EngineFacts

PARAMS = SamplingParams(max_tokens=20, ignore_eos=True)


class Fakes:
    """What stands behind the LLM under test."""

    engine: Engine
    runner: FakeRunner

    def start(self, config: EngineConfig) -> tuple[Engine, EngineFacts]:
        kv = KvManager(num_pages=256, page_size=16, radix_cache=True)
        self.runner = FakeRunner(
            num_pages=256, page_size=16, num_slots=64, vocab_size=256, latency=1
        )
        self.engine = Engine(Scheduler(config.schedule, kv, context_length=512), self.runner)
        limits = RequestLimits(
            context_length=512, max_total_tokens=4096, vocab_size=256, eos_token_ids=()
        )
        return self.engine, EngineFacts(
            model_name="fake",
            device="nowhere",
            dtype="float32",
            limits=limits,
            banner=(),
            plan={},
        )


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Fakes:
    fakes = Fakes()
    monkeypatch.setattr(worker, "start", lambda config, choice: fakes.start(config))
    monkeypatch.setattr(llm_module, "begin_choice", lambda plugins, options: None)
    return fakes


@pytest.fixture
def folder(tmp_path: Path) -> str:
    write_byte_tokenizer(tmp_path)
    return str(tmp_path)


@pytest.fixture
def llm(fakes: Fakes, folder: str) -> Iterator[LLM]:
    with LLM(folder) as llm:
        yield llm


def test_two_streams_at_once_lose_nothing(llm: LLM) -> None:
    first, second = llm.generate(["first", "second"], PARAMS)
    streams = [llm.stream("first", PARAMS), llm.stream("second", PARAMS)]
    deltas = list(zip(*streams, strict=True))
    for completion, got in zip((first, second), zip(*deltas, strict=True), strict=True):
        answer = completion.answers[0]
        assert sum((each.token_ids for each in got), ()) == answer.token_ids
        assert "".join(each.text for each in got) == answer.text
        assert [each.finish_reason for each in got][-2:] == [None, FinishReason.LENGTH]


def test_a_stream_gets_what_other_calls_computed(llm: LLM) -> None:
    (expected,) = llm.generate("first", PARAMS)
    stream = llm.stream("first", PARAMS)
    got = [next(stream)]
    llm.generate("second", SamplingParams(max_tokens=100))
    got += stream
    assert sum((each.token_ids for each in got), ()) == expected.answers[0].token_ids
    assert "".join(each.text for each in got) == expected.text


def test_a_stream_that_nobody_reads_asks_for_nothing(llm: LLM, fakes: Fakes) -> None:
    stream = llm.stream("never", PARAMS)
    llm.generate("other", SamplingParams(max_tokens=1))
    assert not fakes.engine.has_work
    del stream
    with pytest.raises(RequestError):
        llm.stream([300], PARAMS)


def test_a_stream_left_early_ends(llm: LLM, fakes: Fakes) -> None:
    for _ in llm.stream("left", PARAMS):
        break
    assert fakes.engine.stats().num_running == 0


def test_a_stream_carries_logprobs(llm: LLM) -> None:
    params = SamplingParams(max_tokens=4, logprobs=2, prompt_logprobs=1)
    (expected,) = llm.generate([[5, 6, 7]], params)
    deltas = list(llm.stream([5, 6, 7], params))
    assert expected.prompt_logprobs is not None
    assert [each.token_id for each in expected.prompt_logprobs] == [6, 7]
    assert deltas[0].prompt_logprobs == expected.prompt_logprobs
    assert all(each.prompt_logprobs is None for each in deltas[1:])
    got = [each for delta in deltas for each in delta.logprobs or ()]
    assert tuple(got) == expected.answers[0].logprobs
    assert [each.token_id for each in got] == list(expected.answers[0].token_ids)
    assert next(llm.stream([5], PARAMS)).logprobs is None


def test_nothing_predicts_the_only_token_of_a_prompt(llm: LLM) -> None:
    (completion,) = llm.generate([[5]], SamplingParams(max_tokens=1, prompt_logprobs=1))
    assert completion.prompt_logprobs == ()
    (completion,) = llm.generate([[5]], SamplingParams(max_tokens=1))
    assert completion.prompt_logprobs is None


def test_answers_beyond_the_largest_seed_have_seeds_too(llm: LLM) -> None:
    params = SamplingParams(max_tokens=2, n=3, seed=2**64 - 1)
    assert len(llm.generate("seeds", params)[0].answers) == 3


def test_a_call_refused_in_part_leaves_nothing_running(
    llm: LLM, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, num_added = fakes.engine.add, 0

    def refuse_the_second(request: Any) -> None:
        nonlocal num_added
        num_added += 1
        if num_added == 2:
            raise RequestError("not this one")
        add(request)

    monkeypatch.setattr(fakes.engine, "add", refuse_the_second)
    with pytest.raises(RequestError, match="not this one"):
        llm.generate(["a", "b", "c"], PARAMS)
    stats = fakes.engine.stats()
    assert (stats.num_running, stats.num_waiting) == (0, 0)


def test_an_interrupted_call_leaves_the_next_one_alone(llm: LLM, fakes: Fakes) -> None:
    fakes.runner.fail(steps=[2], error=KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["a", "b"], PARAMS)
    (completion,) = llm.generate("c", PARAMS)
    assert len(completion.answers[0].token_ids) == 20


def test_a_device_fault_is_an_engine_error_for_good(
    llm: LLM, fakes: Fakes, caplog: pytest.LogCaptureFixture
) -> None:
    fakes.runner.fail(steps=[2], error=EngineError)
    for _ in range(2):
        with caplog.at_level(logging.CRITICAL), pytest.raises(EngineError, match="was told to"):
            llm.generate("a", PARAMS)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([1, 2, 3], r"prompts\[0\] is 1; .*\[\[1, 2, 3\]\]"),
        (5, "prompts is a int"),
        ([[1, 2.5]], "holds 2.5; allowed: whole numbers"),
        ([[1, True]], "holds True; allowed: whole numbers"),
        ([[1, "a"]], "holds 'a'; allowed: whole numbers"),
        ([np.array([1.0])], "allowed: whole numbers"),
        ([[1, 2**40]], "token id 1099511627776"),
        ([[1, -1]], "token id -1"),
        ([[]], "empty"),
    ],
)
def test_prompts_of_the_wrong_kind_are_refused(llm: LLM, prompts: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        llm.generate(prompts, PARAMS)


def test_prompts_may_be_arrays(llm: LLM) -> None:
    ours, plain = llm.generate([np.array([5, 6]), [5, 6]], PARAMS)
    assert ours == plain


def test_a_closed_llm_says_so(fakes: Fakes, folder: str) -> None:
    with LLM(folder) as llm:
        stream = llm.stream("open", PARAMS)
        next(stream)
        llm.close()
        llm.close()
        with pytest.raises(EngineError, match="closed"):
            list(stream)
        with pytest.raises(EngineError, match="closed"):
            llm.generate("late", PARAMS)


def test_wishes_that_only_a_server_grants_are_refused(fakes: Fakes, folder: str) -> None:
    for options in ({"log_requests": True}, {"max_queued_requests": 5}):
        with pytest.raises(ConfigError, match="belongs to the server"):
            LLM(folder, **options)


def test_the_log_level_is_honoured(
    fakes: Fakes, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("chiplet")
    monkeypatch.setattr(logger, "level", logger.level)
    LLM(folder).close()
    before = logger.level
    LLM(folder, log_level="error").close()
    assert logger.level == logging.ERROR != before
    logger.setLevel(before)


def test_a_whole_configuration_stands_alone(fakes: Fakes, folder: str) -> None:
    config = EngineConfig.from_options(model=folder)
    with LLM(config) as llm:
        assert llm.facts.model_name == "fake"
    with pytest.raises(ConfigError, match="page_size"):
        LLM(config, page_size=1)


def test_a_conversation_becomes_a_prompt(llm: LLM) -> None:
    token_ids = llm.chat_prompt([{"role": "user", "content": "hi"}])
    expected = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert llm.tokenizer.decode(token_ids, skip_special_tokens=False) == expected
