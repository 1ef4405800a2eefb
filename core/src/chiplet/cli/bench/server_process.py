"""A server of our own, started as a person would start it, for benchmarks over HTTP."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from chiplet.cli.bench.http_client import Address, is_ok
from chiplet.errors import EngineError

START_LIMIT_S = 600.0
POLL_INTERVAL_S = 0.01


@dataclass(frozen=True, slots=True)
class ServerProcess:
    """A running `chiplet serve`.

    Attributes:
        started_s: clock just before the process was started.
        log: file that holds all it prints.
    """

    address: Address
    process: subprocess.Popen[bytes]
    started_s: float
    log: Path

    async def wait_until_ok(self, path: str) -> float:
        """Clock when a GET of `path` was first answered 200.

        Raises:
            EngineError: the server ended, or did not get there in time.
        """
        while time.perf_counter() - self.started_s < START_LIMIT_S:
            if self.process.poll() is not None:
                last = self.log.read_text(encoding="utf-8", errors="replace").strip()[-400:]
                raise EngineError(f"The server ended by itself: {last}")
            if await is_ok(self.address, path):
                return time.perf_counter()
            await asyncio.sleep(POLL_INTERVAL_S)
        raise EngineError(f"The server did not answer {path} within {START_LIMIT_S:g} s.")


@contextmanager
def server_process(values: Mapping[str, object]) -> Generator[ServerProcess]:
    """A server with settings by path, like 'cache.page_size', stopped at the end."""
    with tempfile.TemporaryDirectory(prefix="chiplet-bench-") as folder:
        settings = {path.partition(".")[2]: value for path, value in values.items()}
        file = Path(folder) / "config.yaml"
        file.write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML
        log = Path(folder) / "server.log"
        port = _free_port()
        command = [sys.executable, "-m", "chiplet.cli", "serve", "--config", str(file)]
        with log.open("wb") as output:
            started_s = time.perf_counter()
            process = subprocess.Popen(
                [*command, "--port", str(port)], stdout=output, stderr=subprocess.STDOUT
            )
            try:
                yield ServerProcess(Address("127.0.0.1", port), process, started_s, log)
            finally:
                _stop(process)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
