"""`generate` and `chat` with a model that repeats what it hears."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from chiplet.cli import chat, generate
from chiplet.cli.main import main
from chiplet.errors import RequestError
from chiplet.llm import Answer, Completion, StreamDelta
from chiplet.request import FinishReason
from chiplet.sampling_params import SamplingParams


@dataclass
class EchoLlm:
    """Streams the words of the last message, with the number of messages before them."""

    heard: list[Sequence[Mapping[str, str]]] = field(default_factory=list)
    params: list[SamplingParams] = field(default_factory=list)
    interrupt_after: int | None = None
    reason: FinishReason = FinishReason.STOP
    facts: SimpleNamespace = field(
        default_factory=lambda: SimpleNamespace(model_name="echo", device="nowhere")
    )

    def __enter__(self) -> EchoLlm:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def stream(self, prompt: str, params: SamplingParams) -> Iterator[StreamDelta]:
        self.params.append(params)
        if not prompt:
            yield StreamDelta("", (2,), self.reason)
        for number, word in enumerate(prompt.split()):
            if number == self.interrupt_after:
                os.kill(os.getpid(), signal.SIGINT)
            yield StreamDelta(f"{word} ", (number,), None)

    def stream_chat(
        self, messages: Sequence[Mapping[str, str]], params: SamplingParams
    ) -> Iterator[StreamDelta]:
        self.heard.append(list(messages))
        if messages[-1]["content"] == "too long":
            raise RequestError("The prompt is too long.")
        return self.stream(f"{len(messages)}: {messages[-1]['content']}", params)

    def generate(
        self,
        prompts: Sequence[str | Sequence[int]],
        params: Sequence[SamplingParams],
        *,
        progress: bool,
    ) -> list[Completion]:
        self.params += params
        return [
            Completion(
                prompt_token_ids=(1,),
                answers=(
                    Answer(
                        text=f"echo {prompt}",
                        token_ids=(1, 2),
                        finish_reason=FinishReason.LENGTH,
                        logprobs=None,
                    ),
                ),
                num_cached_tokens=0,
                prompt_logprobs=None,
            )
            for prompt in prompts
        ]


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> EchoLlm:
    llm = EchoLlm()
    for module in (chat, generate):
        monkeypatch.setattr(module, "open_llm", lambda given: llm)
    return llm


def pipe(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


def test_generate_streams_a_prompt(echo: EchoLlm, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "one two", "--temperature", "0"]) == 0
    assert capsys.readouterr().out == "one two \n"
    assert echo.params == [SamplingParams(temperature=0.0, max_tokens=256)]


@pytest.mark.parametrize(
    ("reason", "note"),
    [
        (FinishReason.STOP, "ended its answer before it wrote any text. Ask a question with"),
        (FinishReason.LENGTH, "has no text and ended with 'length'"),
    ],
)
def test_generate_says_why_there_is_no_text(
    echo: EchoLlm, capsys: pytest.CaptureFixture[str], reason: FinishReason, note: str
) -> None:
    echo.reason = reason
    assert main(["generate", ""]) == 0
    captured = capsys.readouterr()
    assert captured.out == "\n"
    assert note in captured.err


@pytest.mark.parametrize("command", ["generate", "chat", "bench latency", "bench prefix"])
@pytest.mark.parametrize("flag", ["--log-requests", "--max-queued-requests=5"])
def test_flags_of_the_server_are_unknown_offline(
    command: str, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command.split(), flag]) == 2
    assert f"Unknown flag '{flag.partition('=')[0]}'" in capsys.readouterr().err


def test_generate_asks_through_the_template(
    echo: EchoLlm, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "--chat", "hi"]) == 0
    assert capsys.readouterr().out == "1: hi \n"
    assert echo.heard == [[{"role": "user", "content": "hi"}]]


def test_generate_reads_a_pipe(
    echo: EchoLlm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe("from a pipe\n", monkeypatch)
    assert main(["generate"]) == 0
    assert capsys.readouterr().out == "from a pipe \n"


def test_generate_answers_a_file(echo: EchoLlm, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"prompt": "a", "max_tokens": 2}\n{"prompt": [5], "id": 1}\n')
    words = ["generate", "--input", str(source), "--output", str(target), "--top-k", "3"]
    assert main(words) == 0
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert [row["answers"][0]["text"] for row in rows] == ["echo a", "echo [5]"]
    assert [each.max_tokens for each in echo.params] == [2, 256]
    assert all(each.top_k == 3 for each in echo.params)


def test_generate_looks_at_the_output_before_it_works(
    echo: EchoLlm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "a"}\n')
    output = str(tmp_path / "no" / "out.jsonl")
    assert main(["generate", "--input", str(source), "--output", output]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert echo.params == []


def test_chat_remembers_and_obeys(
    echo: EchoLlm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe("first\n\nsecond\n/reset\nthird\n/exit\nnever\n", monkeypatch)
    assert main(["chat", "--system", "Be kind."]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "2: first ",
        "4: second ",
        "The conversation starts anew.",
        "2: third ",
    ]
    assert echo.heard[1] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "2: first "},
        {"role": "user", "content": "second"},
    ]


def test_chat_goes_on_after_a_refusal(
    echo: EchoLlm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe("too long\nshort\n", monkeypatch)
    assert main(["chat"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "1: short \n"
    assert captured.err == "error: The prompt is too long. /reset starts anew.\n"


def test_ctrl_c_ends_the_answer_and_not_the_chat(
    echo: EchoLlm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGINT)
    echo.interrupt_after = 2
    pipe("a b c d\nx\n", monkeypatch)
    assert main(["chat"]) == 0
    assert capsys.readouterr().out.splitlines() == ["1: a b  [interrupted]", "3: x "]
    assert signal.getsignal(signal.SIGINT) is before
