"""ServerProcess: a running server under test, with its children."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import openai
import psutil
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from chiplet.config import (
    DeviceOptions,
    EngineConfig,
    LogOptions,
    ModelOptions,
    ScheduleOptions,
    ServerOptions,
)
from tests.server.fake_server import Settings

ROOT = Path(__file__).parents[2]
START_LIMIT_S = 120.0

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_byte_tokenizer(folder: Path) -> None:
    """A tokenizer with one token per byte and three special ones (256 to 258)."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: index for index, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer.add_special_tokens([AddedToken(each, special=True) for each in special])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"chat_template": CHAT_TEMPLATE, "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_bytes(msgspec.json.encode(config))


def eventually(holds: Callable[[], bool], *, limit_s: float = 10.0) -> bool:
    """Whether something becomes true before long."""
    end_s = time.monotonic() + limit_s
    while not holds():
        if time.monotonic() > end_s:
            return False
        time.sleep(0.02)
    return True


class ServerProcess:
    """A running server under test."""

    def __init__(self, process: subprocess.Popen[str], url: str, api_key: str | None) -> None:
        self.process = process
        self.url = url
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self.http = httpx.Client(base_url=url, headers=headers, timeout=60)
        self.openai = openai.OpenAI(
            base_url=f"{url}/v1", api_key=api_key or "none", max_retries=0, timeout=60
        )

    def child(self, name: str) -> psutil.Process:
        """The engine or the detokenizer."""
        children = psutil.Process(self.process.pid).children()
        return next(each for each in children if f"{name}_process" in " ".join(each.cmdline()))

    def socket_folders(self) -> list[Path]:
        """Folders of sockets that this server's children use."""
        files = self.child("engine").net_connections(kind="unix")
        return sorted({Path(each.laddr).parent for each in files if each.laddr})

    def is_ready(self) -> bool:
        return self.http.get("/readyz").status_code == 200

    def is_alive(self) -> bool:
        """Whether it answers at all, its engine perhaps not."""
        try:
            return self.http.get("/livez").status_code == 200
        except httpx.TransportError:
            return False

    def metric(self, name: str) -> float:
        """A metric's value, with its labels as Prometheus writes them."""
        text = self.http.get("/metrics").text
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        assert found, f"{name} is not among\n{text}"
        return float(found.group(1))

    def stop(self, number: int = signal.SIGTERM) -> tuple[str, str]:
        """Standard output and error after a signal."""
        self.http.close()
        self.openai.close()
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.communicate(timeout=30)


def spawn(config: EngineConfig, options: ServerOptions) -> subprocess.Popen[str]:
    """A server process with a fake engine, perhaps not ready."""
    settings = msgspec.json.encode(Settings(config, options)).decode()
    return subprocess.Popen(
        [sys.executable, "-m", "tests.server.fake_server", settings],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def engine_config(folder: Path, **schedule: int) -> EngineConfig:
    """Settings for a fake engine whose tokenizer is in `folder`."""
    return EngineConfig(
        model=ModelOptions(model=str(folder), served_model_name="fake", context_length=2048),
        schedule=ScheduleOptions(**schedule),  # type: ignore[arg-type]
        device=DeviceOptions(),
        log=LogOptions(log_requests=True),
    )


@contextmanager
def running_server(
    config: EngineConfig, *, waits: bool = True, **options: Any
) -> Iterator[ServerProcess]:
    """A server with a fake engine and these settings; ends with SIGTERM."""
    process = spawn(config, ServerOptions(port=0, **options))
    with watched(process, api_key=options.get("api_key"), waits=waits) as server:
        yield server


@contextmanager
def watched(
    process: subprocess.Popen[str], *, api_key: str | None = None, waits: bool = True
) -> Iterator[ServerProcess]:
    """A server process that was just started; ends with SIGTERM."""
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.search(r"http://\S+", line)
    assert found, line + process.communicate(timeout=10)[1]
    server = ServerProcess(process, found.group(), api_key)
    try:
        if waits:
            assert eventually(lambda: _is_ready(server), limit_s=START_LIMIT_S)
        yield server
    finally:
        server.stop()


def _is_ready(server: ServerProcess) -> bool:
    assert server.process.poll() is None, server.process.communicate()[1]
    try:
        return server.is_ready()
    except httpx.TransportError:
        return False
