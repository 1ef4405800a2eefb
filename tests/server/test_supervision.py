"""Processes: they die and come back, they end together, and leave nothing behind."""

from __future__ import annotations

import signal
import socket
import stat
import time
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import openai
import psutil
import pytest

from chiplet.config import ServerOptions
from tests.server.server_process import (
    ServerProcess,
    engine_config,
    eventually,
    running_server,
    spawn,
)


def children_of(server: ServerProcess) -> list[psutil.Process]:
    return [server.child("engine"), server.child("detokenizer")]


def are_gone(processes: list[psutil.Process]) -> bool:
    return not any(
        each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in processes
    )


@pytest.mark.parametrize("victim", ["engine", "detokenizer"])
def test_a_killed_child_comes_back_behind_the_port(model_folder: Path, victim: str) -> None:
    with running_server(engine_config(model_folder)) as server:
        old = children_of(server)
        old_folders = server.socket_folders()
        stream = server.openai.completions.create(
            model="fake",
            prompt="ab",
            max_tokens=2000,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        assert next(iter(stream)).choices[0].text == "a"
        while not server.metric("chiplet_output_tokens_total"):
            time.sleep(0.05)
        server.child(victim).kill()
        with pytest.raises(openai.APIError) as caught:
            list(stream)
        assert caught.value.type == "engine_error"
        assert caught.value.code == "engine_restarted"

        refused = server.http.post("/v1/completions", json={"prompt": "x"})
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "engine_restarted"
        assert int(refused.headers["retry-after"]) >= 1
        assert server.http.get("/readyz").status_code == 503
        assert server.http.get("/livez").status_code == 200

        # The official client waits and tries again by itself.
        patient = server.openai.with_options(max_retries=5)
        assert patient.completions.create(model="fake", prompt="xy").choices[0].text == "xy" * 8
        assert server.metric("chiplet_engine_restarts_total") == 1
        assert server.metric("chiplet_output_tokens_total") > 16, "totals go on"
        assert are_gone(old)
        assert not any(folder.exists() for folder in old_folders)
        assert server.socket_folders() != old_folders


def test_a_whole_answer_that_is_cut_off_is_a_503(model_folder: Path) -> None:
    with running_server(engine_config(model_folder)) as server:
        with httpx.Client(base_url=server.url) as client:
            # Token 1 makes the fake engine raise.
            response = client.post("/v1/completions", json={"prompt": [1, 5]})
        assert response.status_code == 503
        assert response.json()["error"]["type"] == "engine_error"
        assert response.json()["error"]["code"] == "engine_restarted"
        assert eventually(server.is_ready)


def test_five_deaths_in_a_minute_end_the_server(model_folder: Path) -> None:
    with running_server(engine_config(model_folder)) as server:
        for _ in range(5):
            assert eventually(server.is_ready)
            server.child("engine").kill()
            assert eventually(lambda: _is_gone_or_unready(server))
        assert server.process.wait(timeout=10) == 2
        _, errors = server.stop()
        assert "died 5 times within 60 s" in errors
        assert "SIGKILL" in errors
        assert "Traceback" not in errors


def _is_gone_or_unready(server: ServerProcess) -> bool:
    try:
        return not server.is_ready()
    except httpx.TransportError:
        return True


@dataclass(frozen=True)
class Ended:
    """A server that answered one request and was told to stop."""

    url: str
    exit_code: int
    output: str
    errors: str
    children: list[psutil.Process]
    folders: list[Path]


@pytest.fixture(scope="module", params=[signal.SIGTERM, signal.SIGINT])
def ended(model_folder: Path, request: pytest.FixtureRequest) -> Ended:
    with running_server(engine_config(model_folder)) as server:
        server.openai.completions.create(model="fake", prompt="abc", max_tokens=4)
        children, folders = children_of(server), server.socket_folders()
        output, errors = server.stop(request.param)
        return Ended(server.url, server.process.returncode, output, errors, children, folders)


def test_a_told_server_leaves_nothing(ended: Ended) -> None:
    assert ended.exit_code == 0
    assert len(ended.folders) == 1
    assert not ended.folders[0].exists()
    assert are_gone(ended.children)
    assert "Traceback" not in ended.errors


def test_the_server_process_stays_light(ended: Ended) -> None:
    modules = ended.output.rpartition("modules: ")[2].split()
    assert "chiplet.server.app" in modules
    for banned in ("torch", "transformers", "chiplet.worker", "chiplet.plugins", "chiplet.models"):
        assert banned not in modules


def test_the_banner_says_what_and_where(ended: Ended) -> None:
    assert f"URL      {ended.url}" in ended.output
    assert "Model    fake" in ended.output
    assert "fake:0 (pretended)" in ended.output
    assert f"curl {ended.url}/v1/chat/completions" in ended.output
    assert "/v1/models" in ended.output


def test_requests_are_logged_when_they_end(ended: Ended) -> None:
    (line,) = [each for each in ended.errors.splitlines() if "/v1/completions" in each]
    assert "POST /v1/completions 200" in line
    assert "prompt=3 cached=0 output=4 finish=length first_token=" in line


def test_a_told_server_finishes_what_it_has_begun(model_folder: Path) -> None:
    with running_server(engine_config(model_folder)) as server:
        stream = server.openai.completions.create(
            model="fake", prompt="ab", max_tokens=300, stream=True
        )
        next(iter(stream))
        server.process.send_signal(signal.SIGTERM)
        chunks = list(stream)
        assert chunks[-1].choices[0].finish_reason == "length"
        server.stop()
        assert server.process.returncode == 0


def test_children_do_not_outlive_a_killed_server(model_folder: Path) -> None:
    with running_server(engine_config(model_folder)) as server:
        children, folders = children_of(server), server.socket_folders()
        server.process.kill()
        server.process.wait()
        assert eventually(lambda: are_gone(children))
        for folder in folders:
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()


def test_sockets_are_for_their_owner_alone(server: ServerProcess) -> None:
    (folder,) = server.socket_folders()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    *sockets, stack = sorted(folder.iterdir())
    assert stack.name == "stack.txt"
    assert stat.S_IMODE(stack.stat().st_mode) == 0o600
    assert [each.name for each in sockets] == ["detokenizer.sock", "engine.sock", "server.sock"]
    for each in sockets:
        assert stat.S_ISSOCK(each.stat().st_mode)
        assert stat.S_IMODE(each.stat().st_mode) == 0o600


def test_an_engine_that_cannot_start_ends_the_server(model_folder: Path) -> None:
    config = engine_config(model_folder)
    config = replace(config, model=replace(config.model, served_model_name="broken"))
    process = spawn(config, ServerOptions(port=0))
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 2
    assert errors == ("ConfigError: The fake model is broken. Serve it under another name.\n"), (
        "the engine's own words and no traceback"
    )


def test_a_port_in_use_is_said_at_once(model_folder: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        process = spawn(engine_config(model_folder), ServerOptions(port=port))
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 2
    assert errors.startswith(f"ConfigError: Port {port} of 127.0.0.1 is in use")
    assert "--port" in errors


def test_nothing_is_pickled() -> None:
    root = Path(__file__).parents[2] / "core" / "src" / "chiplet"
    for folder in ("ipc", "server"):
        for path in (root / folder).rglob("*.py"):
            source = path.read_text()
            assert "pickle" not in source
            assert "multiprocessing" not in source
            assert "pyobj" not in source
