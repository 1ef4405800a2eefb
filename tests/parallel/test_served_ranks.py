"""A real server whose model is shared by two ranks: it answers, restarts, and leaves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from tests.models.tiny import SHAPE
from tests.server.server_process import (
    START_LIMIT_S,
    ServerProcess,
    eventually,
    watched,
    write_byte_tokenizer,
)

CONFIG = SHAPE | {"vocab_size": 259, "model_type": "llama", "architectures": ["LlamaForCausalLM"]}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small model without weights."""
    write_byte_tokenizer(tmp_path)
    config = {"rms_norm_eps": 1e-5, "torch_dtype": "float32"} | CONFIG
    (tmp_path / "config.json").write_bytes(msgspec.json.encode(config))
    return tmp_path


def start(model: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "chiplet.cli", "serve", str(model), "--load-format", "dummy"]
    command += ["--max-total-tokens", "512", "--port", "0", "--device", "reference"]
    command += ["--tensor-parallel-size", "2"]
    return subprocess.Popen(
        command,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def answer(server: ServerProcess) -> str:
    body = {"prompt": "Hello", "max_tokens": 5, "temperature": 0, "ignore_eos": True}
    return (
        server.http.post("/v1/completions", json=body)
        .raise_for_status()
        .json()["choices"][0]["text"]
    )


def ranks(server: ServerProcess) -> list[psutil.Process]:
    found = server.child("engine").children()
    return [each for each in found if "chiplet.ranks.rank_process" in " ".join(each.cmdline())]


def health(server: ServerProcess) -> dict[str, Any]:
    return server.http.get("/health").json()


def test_a_dead_rank_is_an_engine_started_again_and_the_end_leaves_none(model: Path) -> None:
    process = start(model)
    try:
        with watched(process) as server:
            text = answer(server)
            shown = health(server)["ranks"]
            assert [each.partition(" on ")[0] for each in shown] == ["rank 0", "rank 1"]
            assert server.http.get("/debug/plan").json()["ranks"] == shown
            (rank,) = ranks(server)
            rank.kill()
            assert eventually(lambda: health(server)["restarts"] == 1)
            assert "Rank 1 ended with signal SIGKILL" in health(server)["events"][0]
            assert health(server)["denied"] == []
            assert eventually(server.is_ready, limit_s=START_LIMIT_S)
            assert answer(server) == text
            children = [server.child("engine"), *ranks(server)]
            output, _ = server.stop()
            assert "2 ranks share the model" in output
        assert eventually(lambda: not any(each.is_running() for each in children))
    finally:
        process.kill()


def test_a_killed_server_leaves_no_rank(model: Path) -> None:
    process = start(model)
    try:
        with watched(process) as server:
            children = [server.child("engine"), *ranks(server)]
            assert len(children) == 2
            server.stop(signal.SIGKILL)
        assert eventually(lambda: not any(each.is_running() for each in children))
    finally:
        process.kill()
