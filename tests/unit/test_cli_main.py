"""The entry point: quick paths, exit codes, and errors in at most three lines."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest

import chiplet.cli.main as entry
from chiplet import __version__
from chiplet.cli import serve
from chiplet.cli.command import Command, Given
from chiplet.config import EngineConfig, ServerOptions
from chiplet.errors import ConfigError, EngineError, RequestError

HEAVY = ("torch", "numpy", "transformers", "fastapi", "zmq")


def loaded_by(*words: str) -> tuple[int, str, set[str]]:
    """Exit code, output, and heavy modules loaded by a run in a process of its own."""
    script = (
        "import sys; from chiplet.cli.main import main\n"
        "try:\n    code = main(sys.argv[1:])\n"
        "except SystemExit as leaving:\n    code = leaving.code\n"
        f"print('LOADED', code, *(name for name in {HEAVY} if name in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    text, _, loaded = done.stdout.rpartition("LOADED ")
    code, *modules = loaded.split()
    return int(code), text, set(modules)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--version"], f"chiplet {__version__}\n"),
        (["--help"], "chiplet generate"),
        ([], "chiplet bench prefix"),
        (["serve", "--help"], "--page-size"),
        (["generate", "--help"], "--temperature"),
        (["chat", "-h"], "--system"),
        (["explain", "--help"], "--json"),
        (["bench", "--help"], "chiplet bench throughput"),
        (["bench", "serve", "--help"], "--request-rate"),
        (["bench", "latency", "--help"], "--against"),
        (["pull", "--list"], "smollm2-135m"),
    ],
)
def test_quick_paths_load_nothing_heavy(words: list[str], said: str) -> None:
    code, text, heavy = loaded_by(*words)
    assert code == 0
    assert said in text
    assert heavy == set()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["serv"], "error: Unknown command 'serv'.\n       Did you mean 'serve'?\n"),
        (["--versoin"], "error: Unknown flag '--versoin'.\n       Did you mean '--version'?\n"),
        (["qqq"], "error: Unknown command 'qqq'.\n       See 'chiplet --help'.\n"),
        (["bench", "latncy"], "Did you mean 'latency'?"),
        (["chat", "--temprature", "1"], "Did you mean '--temperature'?"),
        (
            ["generate", "x", "--top-p", "7"],
            "error: top_p is 7.0; allowed: 0 to 1.\n",
        ),
        (["generate", "x", "--input", "f"], "--input stands beside a prompt"),
        (["generate", "x", "--output", "f"], "--output needs --input."),
        (["generate", "x", "--n", "2"], "--n and --logprobs have no place"),
        (["generate", "--input", "nowhere.jsonl"], "--input nowhere.jsonl cannot be read"),
        (["pull"], "See 'chiplet pull --list'."),
        (["pull", "--list", "x"], "--list stands beside a name."),
        (["bench", "serve", "--url", "ftp://x"], "--url is 'ftp://x'"),
        (["bench", "serve", "--url", "http://x", "--page-size", "4"], "cache.page_size"),
    ],
)
def test_a_persons_error_is_short(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert entry.main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert len(captured.err.splitlines()) <= 3
    assert "Traceback" not in captured.err


def run_raising(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> int:
    def run(given: Given) -> int:
        raise error

    command = Command(name="serve", summary="", run=run, groups={})
    monkeypatch.setattr(entry, "load_command", lambda name: command)
    return entry.main(["serve"])


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ConfigError("a\nb\nc\nd", remedy="e\nf"), 2, "error: a\n       b\n       e f\n"),
        (RequestError("bad"), 2, "error: bad\n"),
        (EngineError("broke"), 1, "error: broke\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_errors_are_told_in_one_place(
    error: BaseException,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_raising(error, monkeypatch) == code
    assert capsys.readouterr().err == said


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        run_raising(ZeroDivisionError(), monkeypatch)


def test_serve_hands_settings_to_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    handed: list[tuple[EngineConfig, ServerOptions]] = []

    def serve_fake(config: EngineConfig, options: ServerOptions) -> int:
        handed.append((config, options))
        return 7

    def find(name: str) -> SimpleNamespace:
        assert name == "chiplet.server.start"
        return SimpleNamespace(serve=serve_fake)

    monkeypatch.setattr(serve, "importlib", SimpleNamespace(import_module=find))
    assert entry.main(["serve", "some/model", "--port", "1234", "--page-size", "8"]) == 7
    ((config, options),) = handed
    assert config.model.model == "some/model"
    assert config.cache.page_size == 8
    assert config.explicit == {"model.model", "cache.page_size"}
    assert options.port == 1234


def test_the_server_has_what_serve_calls() -> None:
    from chiplet.server.start import serve as real

    names = list(real.__annotations__)
    assert names[:2] == ["config", "options"]
    assert real.__annotations__["return"] == "int"
