"""JSONL files of prompts, the conversation of chat, and reports of benchmarks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chiplet.cli.bench.http_client import Timeline, parse_address
from chiplet.cli.bench.machine import describe_machine
from chiplet.cli.bench.report import Report, ReportOptions, percentiles, publish
from chiplet.cli.bench.serve import summarize
from chiplet.cli.bench.workload import exact_length, random_prompts
from chiplet.cli.chat import Conversation
from chiplet.cli.jsonl import Task, answer_line, read_tasks
from chiplet.errors import ConfigError, EngineError
from chiplet.llm import Answer, Completion
from chiplet.request import FinishReason, TokenLogprobs
from chiplet.sampling_params import SamplingParams

DEFAULTS = SamplingParams(max_tokens=9)


def tasks_of(tmp_path: Path, *lines: str) -> list[Task]:
    file = tmp_path / "in.jsonl"
    file.write_text("\n".join(lines))
    return read_tasks(file, DEFAULTS)


def test_lines_become_tasks(tmp_path: Path) -> None:
    tasks = tasks_of(
        tmp_path,
        '{"prompt": "a", "temperature": 0, "stop": "x", "logit_bias": {"5": 1}}',
        "",
        '{"id": 7, "messages": [{"role": "user", "content": "b"}], "max_tokens": 2}',
        '{"prompt": [1, 2]}',
    )
    assert [task.line for task in tasks] == [1, 3, 4]
    assert tasks[0].params == SamplingParams(
        max_tokens=9, temperature=0.0, stop=("x",), logit_bias={5: 1.0}
    )
    assert (tasks[1].id, tasks[1].prompt, tasks[1].params.max_tokens) == (7, None, 2)
    assert tasks[2].prompt == [1, 2]
    assert tasks[2].params == DEFAULTS


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "line 1 is not JSON"),
        ("[]", "line 1 is no object"),
        ("{}", "needs 'prompt' or 'messages'"),
        ('{"prompt": "a", "messages": []}', "needs 'prompt' or 'messages'"),
        ('{"prompt": 5}', "'prompt' is text or a list"),
        ('{"prompt": [true]}', "'prompt' is text or a list"),
        ('{"messages": []}', "'messages' a list"),
        ('{"prompt": "a", "temprature": 0}', "unknown field 'temprature'"),
        ('{"prompt": "a", "top_p": 2}', "top_p is 2.0; allowed"),
        ('{"prompt": "a", "max_tokens": "many"}', "max_tokens"),
        ("", "has no lines"),
    ],
)
def test_a_wrong_line_is_told(tmp_path: Path, line: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tasks_of(tmp_path, line)
    assert problem in caught.value.problem


def test_answers_become_lines() -> None:
    logprobs = (TokenLogprobs(token_id=4, logprob=-0.5, top_token_ids=(4,), top_logprobs=(-0.5,)),)
    answer = Answer(text="hi", token_ids=(4,), finish_reason=FinishReason.STOP, logprobs=logprobs)
    completion = Completion(
        prompt_token_ids=(1, 2), answers=(answer,), num_cached_tokens=1, prompt_logprobs=None
    )
    task = Task(line=3, id="q", prompt="a", messages=(), params=DEFAULTS)
    content = json.loads(answer_line(task, completion))
    assert content["line"] == 3
    assert content["id"] == "q"
    assert content["num_prompt_tokens"] == 2
    assert content["num_cached_tokens"] == 1
    (row,) = content["answers"]
    assert (row["text"], row["finish_reason"], row["num_tokens"]) == ("hi", "stop", 1)
    assert row["logprobs"][0]["logprob"] == -0.5


def test_conversation_obeys_its_commands() -> None:
    talk = Conversation(system=None)
    talk.turns.append({"role": "user", "content": "a"})
    assert talk.command("/system Be brief.") == "The system prompt is set."
    assert talk.messages() == [{"role": "system", "content": "Be brief."}]
    talk.turns.append({"role": "user", "content": "b"})
    assert talk.command("/reset") == "The conversation starts anew."
    assert talk.messages() == [{"role": "system", "content": "Be brief."}]
    assert talk.command("/system") == "There is no system prompt now."
    assert "'/exit'?" in (talk.command("/exot") or "")
    assert talk.command("/exit") is None


def test_percentiles_are_values_that_occurred() -> None:
    assert percentiles("t", [0.4, 0.1, 0.2, 0.3]) == {
        "t_mean_ms": 250.0,
        "t_p50_ms": 200.0,
        "t_p90_ms": 400.0,
        "t_p99_ms": 400.0,
    }
    assert percentiles("t", []) == {}


def test_random_prompts_repeat_with_their_seed() -> None:
    prompts = random_prompts(3, 5, seed=1)
    assert prompts == random_prompts(3, 5, seed=1)
    assert prompts != random_prompts(3, 5, seed=2)
    assert [len(each) for each in prompts] == [5, 5, 5]
    small = random_prompts(2, 50, seed=1, vocab_size=10)
    assert all(0 <= token < 10 for prompt in small for token in prompt)
    assert exact_length(4).ignore_eos


def test_a_load_is_summed_up() -> None:
    good = Timeline(
        start_s=0.0,
        end_s=2.0,
        arrivals_s=(0.5, 1.0, 2.0),
        num_prompt_tokens=10,
        num_cached_tokens=4,
        num_output_tokens=3,
    )
    bad = Timeline(start_s=0.0, end_s=9.0, error="status 429")
    figures = summarize([good, bad])
    assert (figures["answered"], figures["failed"]) == (1, 1)
    assert figures["wall_s"] == 2.0
    assert figures["output_tokens_per_s"] == 1.5
    assert figures["cached_prompt_tokens"] == 4
    assert figures["ttft_p50_ms"] == 500.0
    assert figures["tpot_p50_ms"] == 750.0
    assert figures["itl_p99_ms"] == 1000.0
    with pytest.raises(EngineError, match="status 429"):
        summarize([bad])


def test_a_report_never_lacks_its_origin(tmp_path: Path) -> None:
    report = Report(
        benchmark="latency",
        command_line=("chiplet", "bench"),
        workload={"model": "m"},
        figures={"chiplet": {"ttft_ms": 1.5}},
    )
    file = tmp_path / "r.json"
    publish(report, ReportOptions(json=str(file)))
    content = json.loads(file.read_text())
    assert content["figures"] == {"chiplet": {"ttft_ms": 1.5}}
    assert content["command_line"] == ["chiplet", "bench"]
    assert content["machine"]["processor"]
    assert content["machine"]["torch"][0].isdigit()
    with pytest.raises(ConfigError, match="cannot be written"):
        publish(report, ReportOptions(json=str(tmp_path / "no" / "r.json")))


def test_machine_knows_itself() -> None:
    machine = describe_machine()
    assert machine.num_cores >= 1
    assert machine.memory_gib > 0


@pytest.mark.parametrize(
    ("url", "host", "port", "is_secure"),
    [
        ("http://127.0.0.1:8000", "127.0.0.1", 8000, False),
        ("http://h/v1", "h", 80, False),
        ("https://h", "h", 443, True),
    ],
)
def test_addresses(url: str, host: str, port: int, is_secure: bool) -> None:
    address = parse_address(url)
    assert (address.host, address.port, address.is_secure) == (host, port, is_secure)
