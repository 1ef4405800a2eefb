"""`chiplet serve`, asked over HTTP by one connection per stream: all of a person's way."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from protocol import Start, serve

HOST = "127.0.0.1"
LIMIT_S = 300.0
POLL_INTERVAL_S = 0.01


class ChipletServer:
    """A server with default settings, but for what peers.toml says."""

    def start(self, settings: Start) -> dict[str, Any]:
        """Start it and wait until it says that it can serve."""
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            self._port = probe.getsockname()[1]
        flags = [
            word
            for name, value in settings.extra.items()
            for word in (f"--{name.replace('_', '-')}", str(value))
        ]
        command = [sys.executable, "-m", "chiplet.cli", "serve", settings.model]
        server = subprocess.Popen([*command, "--port", str(self._port), *flags])
        deadline = time.monotonic() + LIMIT_S
        while not self._is_ready():
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server is not ready; exit code {server.poll()}")
            time.sleep(POLL_INTERVAL_S)
        return {}

    def generate(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> int:
        """One request per prompt, all at once."""
        with ThreadPoolExecutor(len(prompts)) as pool:
            return sum(pool.map(lambda prompt: self._complete(prompt, num_tokens), prompts))

    def report(self) -> dict[str, Any]:
        """Which models it serves."""
        return self._ask("GET", "/v1/models")

    def _is_ready(self) -> bool:
        try:
            connection = http.client.HTTPConnection(HOST, self._port, timeout=LIMIT_S)
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except OSError:
            return False

    def _complete(self, prompt: Sequence[int], num_tokens: int) -> int:
        body = {
            "prompt": list(prompt),
            "max_tokens": num_tokens,
            "temperature": 0,
            "ignore_eos": True,
        }
        return self._ask("POST", "/v1/completions", body)["usage"]["completion_tokens"]

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        connection = http.client.HTTPConnection(HOST, self._port, timeout=LIMIT_S)
        headers = {"Content-Type": "application/json"}
        connection.request(method, path, json.dumps(body) if body else None, headers)
        answer = connection.getresponse()
        text = answer.read().decode()
        if answer.status != 200:
            raise RuntimeError(f"{path} was answered {answer.status}: {text[:300]}")
        return json.loads(text)


if __name__ == "__main__":
    serve(ChipletServer())
