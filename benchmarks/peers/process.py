"""A peer as a process: started, asked, frozen while others have their turn, and ended."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

LAST_WORDS_CHARS = 300
_READ_BYTES = 1 << 16


class PeerError(Exception):
    """A peer died, fell silent or reported an error; a row of the table, not the end."""


class PeerUnsupportedError(Exception):
    """A peer cannot do what a row asks."""


@dataclass(frozen=True, slots=True)
class Launch:
    """How a peer's process is started.

    Attributes:
        command: interpreter and adapter.
        settings: what its `start` operation is told.
        log: file that takes all it prints.
    """

    name: str
    command: tuple[str, ...]
    settings: Mapping[str, Any]
    log: Path


@dataclass(slots=True)
class Peak:
    """The most memory that was seen."""

    bytes: int = 0


class PeerProcess:
    """One adapter's process; `start` must be called before `generate`.

    Attributes:
        started_s: clock just before the process was started.
    """

    def __init__(self, launch: Launch) -> None:
        self._launch = launch
        self._rest = b""
        self.started_s = time.perf_counter()
        with launch.log.open("wb") as log:
            self._process = subprocess.Popen(
                launch.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )

    @property
    def name(self) -> str:
        """Name in peers.toml."""
        return self._launch.name

    @property
    def is_alive(self) -> bool:
        """Whether the adapter's process has not ended."""
        return self._process.poll() is None

    def start(self, limit_s: float) -> dict[str, Any]:
        """Load the model; facts that the peer tells."""
        return self.ask({"op": "start", **self._launch.settings}, limit_s)

    def generate(
        self, prompts: Sequence[Sequence[int]], num_tokens: int, *, limit_s: float
    ) -> float:
        """Seconds that the peer took to continue the prompts by exactly `num_tokens` each."""
        task = {"op": "generate", "prompts": prompts, "num_tokens": num_tokens}
        answer = self.ask(task, limit_s)
        wanted = len(prompts) * num_tokens
        if answer["num_tokens"] != wanted:
            raise PeerError(f"gave {answer['num_tokens']} tokens instead of {wanted}")
        return answer["seconds"]

    def ask(self, task: Mapping[str, Any], limit_s: float) -> dict[str, Any]:
        """The answer to one operation.

        Raises:
            PeerError: the peer failed, ended, or did not answer in time.
            PeerUnsupportedError: it cannot do this.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(task).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise PeerError(self._end_words()) from None
        answer = json.loads(self._line(task["op"], time.monotonic() + limit_s, limit_s))
        if "unsupported" in answer:
            raise PeerUnsupportedError(answer["unsupported"])
        if "error" in answer:
            raise PeerError(f"{task['op']}: {answer['error'][:LAST_WORDS_CHARS]}")
        return answer

    def _line(self, operation: str, deadline: float, limit_s: float) -> bytes:
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        while b"\n" not in self._rest:
            if not select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
                self.kill()
                raise PeerError(f"did not answer '{operation}' within {limit_s:g} s")
            part = os.read(pipe, _READ_BYTES)
            if not part:
                raise PeerError(self._end_words())
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _end_words(self) -> str:
        code = self._process.wait()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        text = self._launch.log.read_text("utf-8", errors="replace").strip()
        return f"ended with {how}: {' '.join(text[-LAST_WORDS_CHARS:].split())}"

    def members(self) -> list[psutil.Process]:
        """The process and all that it started and that still live."""
        try:
            root = psutil.Process(self._process.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    @contextmanager
    def awake(self) -> Generator[None]:
        """Let a frozen peer run, and freeze it again: who waits for his turn must not spin."""
        self._signal_all(signal.SIGCONT)
        try:
            yield
        finally:
            self._signal_all(signal.SIGSTOP)

    def cpu_s(self) -> float:
        """CPU time that its processes have used, ended children of theirs included."""
        total = 0.0
        for member in self.members():
            with contextlib.suppress(psutil.Error):
                total += sum(member.cpu_times()[:4])
        return total

    def pss_bytes(self) -> int:
        """Memory of all its processes now; what n processes share counts as 1/n in each."""
        total = 0
        for member in self.members():
            with contextlib.suppress(OSError, psutil.Error):
                rollup = Path(f"/proc/{member.pid}/smaps_rollup").read_text("ascii")
                total += sum(
                    int(line.split()[1]) << 10
                    for line in rollup.splitlines()
                    if line.startswith("Pss:")
                )
        return total

    @contextmanager
    def watching_memory(self, interval_s: float) -> Generator[Peak]:
        """The largest `pss_bytes` seen while the block runs."""
        peak, done = Peak(), threading.Event()

        def watch() -> None:
            while not done.wait(interval_s):
                peak.bytes = max(peak.bytes, self.pss_bytes())

        thread = threading.Thread(target=watch, name="memory-watch", daemon=True)
        thread.start()
        try:
            yield peak
        finally:
            done.set()
            thread.join()
            peak.bytes = max(peak.bytes, self.pss_bytes())

    def kill(self) -> None:
        """End the peer and everything that it started."""
        self._signal_all(signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # orphans, if it died by itself
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    def _signal_all(self, number: int) -> None:
        for member in self.members():
            with contextlib.suppress(psutil.NoSuchProcess):
                member.send_signal(number)
