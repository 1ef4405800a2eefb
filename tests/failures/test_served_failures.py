"""The failure table end to end: a real server process, a real model, a plugin that fails."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.failures.faulty import Faulty
from tests.models.tiny import SHAPE
from tests.server.server_process import ServerProcess, eventually, watched, write_byte_tokenizer

CONFIG = SHAPE | {"vocab_size": 259, "model_type": "llama", "architectures": ["LlamaForCausalLM"]}


@pytest.fixture
def plugins(tmp_path: Path) -> Faulty:
    return Faulty(tmp_path)


@pytest.fixture
def server(plugins: Faulty, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server on a brittle device, with a faulty provider."""
    folder = tmp_path_factory.mktemp("model")
    write_byte_tokenizer(folder)
    config = {"rms_norm_eps": 1e-5, "torch_dtype": "float32"} | CONFIG
    (folder / "config.json").write_bytes(msgspec.json.encode(config))
    process = start(plugins, str(folder), "--load-format", "dummy", "--max-total-tokens", "512")
    try:
        with watched(process) as running:
            yield running
    finally:
        process.kill()


def start(plugins: Faulty, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "chiplet.cli", "serve", *arguments]
    command += ["--port", "0", "--plugins", "chiplet-faulty", "--plugins", "chiplet-brittle"]
    return subprocess.Popen(
        command,
        env=os.environ | {"PYTHONPATH": str(plugins.path), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ask(server: ServerProcess) -> tuple[int, str]:
    body = {"prompt": "Hello", "max_tokens": 3, "temperature": 0, "ignore_eos": True}
    response = server.http.post("/v1/completions", json=body)
    answer = response.json()
    text = answer["error"]["message"] if "error" in answer else answer["choices"][0]["text"]
    return response.status_code, text


def health(server: ServerProcess) -> dict[str, Any]:
    return server.http.get("/health").json()


def provider(server: ServerProcess, operation: str) -> str:
    choices = server.http.get("/debug/plan").json()["choices"]
    return next(each["provider"] for each in choices if each["operation"] == operation)


def test_the_server_lives_through_an_exception_and_a_broken_device(
    server: ServerProcess, plugins: Faulty
) -> None:
    engine = server.child("engine").pid
    assert provider(server, "attention/global") == provider(server, "ops/rms_norm") == "faulty"
    status, text = ask(server)
    assert status == 200

    plugins.order("attention")
    assert ask(server) == (500, "RuntimeError: attention was told")
    assert ask(server) == (200, text)
    assert server.child("engine").pid == engine
    assert provider(server, "attention/global") == "reference"
    assert provider(server, "ops/rms_norm") == "faulty"

    plugins.order("ops", "device")
    status, message = ask(server)
    assert status in (500, 503), message
    assert eventually(lambda: health(server)["restarts"] == 1)
    assert eventually(server.is_ready, limit_s=60)
    assert server.child("engine").pid != engine
    assert health(server)["denied"] == ["ops/rms_norm=faulty"]
    assert "the device is lost" in health(server)["events"][-1]
    assert provider(server, "ops/rms_norm") == "reference"
    assert ask(server) == (200, text)


def test_the_server_lives_through_a_segfault_and_faults_that_come_late(
    server: ServerProcess, plugins: Faulty
) -> None:
    status, text = ask(server)
    assert status == 200

    plugins.order("linear", "segfault")
    assert ask(server)[0] == 503
    await_restart(server, 1)
    plugins.forgive()
    event = health(server)["events"][-1]
    assert "signal SIGSEGV" in event
    assert "stack shows linear/" in event
    roles = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj", "lm_head")
    linear = {f"linear/{role}=faulty" for role in roles}
    assert set(health(server)["denied"]) == linear, "what one source serves is denied together"
    assert provider(server, "linear/o_proj") == "reference"
    assert provider(server, "attention/global") == provider(server, "ops/rms_norm") == "faulty"
    assert ask(server) == (200, text)

    plugins.order("device")
    assert ask(server)[0] in (500, 503)
    await_restart(server, 2)
    assert "the device is lost" in health(server)["events"][-1]
    assert "nobody is suspected for once" in health(server)["events"][-1]
    assert set(health(server)["denied"]) == linear

    plugins.order("device")
    assert ask(server)[0] in (500, 503)
    await_restart(server, 3)
    assert "attention/global=faulty is suspected" in health(server)["events"][-1]
    assert set(health(server)["denied"]) == {*linear, "attention/global=faulty"}
    assert provider(server, "ops/rms_norm") == "faulty"
    assert server.http.get("/debug/plan").json()["device"] == "brittle:0", "the device stays"
    assert ask(server) == (200, text)


def await_restart(server: ServerProcess, number: int) -> None:
    assert eventually(lambda: health(server)["restarts"] == number)
    assert eventually(server.is_ready, limit_s=60)
