"""Probing: asks each platform plugin for its devices, in a process of its own.

A vendor's runtime may crash or hang when it is first touched. All probes start together; one that
has not answered in time is killed, and its plugin counts as having no device.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from select import select
from typing import IO

import msgspec

from chiplet.plugins.plugin_set import Plugin, ProbeResult
from chiplet.plugins.probe_child import ProbeAnswer, ProbeTask

TIME_LIMIT_S = 30.0

# The child takes over this process's import path, which is more than its environment says.
_CHILD = (
    "import json, sys; task = sys.argv[1]; sys.path[:] = json.loads(task)['import_path']; "
    "from chiplet.plugins.probe_child import main; main(task)"
)


def probe_all(
    plugins: Sequence[Plugin], *, time_limit_s: float = TIME_LIMIT_S
) -> tuple[ProbeResult, ...]:
    """What each plugin's probe found, in the order given; takes no longer than the time limit."""
    return start_probes(plugins, time_limit_s=time_limit_s).results()


def start_probes(plugins: Sequence[Plugin], *, time_limit_s: float = TIME_LIMIT_S) -> Probes:
    """Start each plugin's probe; they run while the caller does something else."""
    deadline = time.monotonic() + time_limit_s
    return Probes(tuple(_start(plugin) for plugin in plugins), deadline, time_limit_s)


@dataclass(frozen=True, slots=True)
class _Child:
    """A probe under way.

    Attributes:
        answer: read end of the pipe that the answer comes through.
        errors: what the child writes to its standard error.
    """

    plugin: Plugin
    process: subprocess.Popen[bytes]
    answer: int
    errors: IO[bytes]


@dataclass(frozen=True, slots=True)
class Probes:
    """Probes under way; who started them asks for their results, once."""

    children: tuple[_Child, ...]
    deadline_s: float
    time_limit_s: float

    def results(self) -> tuple[ProbeResult, ...]:
        """What each probe found, in the order given; blocks until the time limit at most."""
        return tuple(_finish(child, self.deadline_s, self.time_limit_s) for child in self.children)


def _start(plugin: Plugin) -> _Child:
    # An own pipe for the answer, because vendor libraries print to standard output.
    read_end, write_end = os.pipe()
    errors = tempfile.TemporaryFile()  # noqa: SIM115 - read and closed by _finish
    context = plugin.context
    task = ProbeTask(
        module=plugin.module,
        host=context.host,
        options=context.options,
        cache_folder=str(context.cache_folder),
        answer_pipe=write_end,
        import_path=sys.path,
    )
    process = subprocess.Popen(
        [sys.executable, "-c", _CHILD, msgspec.json.encode(task).decode()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        pass_fds=(write_end,),
        start_new_session=True,
    )
    os.close(write_end)
    return _Child(plugin, process, read_end, errors)


def _finish(child: _Child, deadline: float, time_limit_s: float) -> ProbeResult:
    text, is_late = _read_until(child.answer, deadline)
    os.close(child.answer)
    try:
        # A child may answer and then hang on its way out.
        child.process.wait(timeout=0.0 if is_late else 1.0)
    except subprocess.TimeoutExpired:
        os.killpg(child.process.pid, signal.SIGKILL)
        child.process.wait()
    with child.errors:
        child.errors.seek(0)
        error_lines = child.errors.read().decode(errors="replace").strip().splitlines()
    if is_late:
        return ProbeResult(child.plugin, failure=f"no answer within {time_limit_s:g} s")
    return _result(child.plugin, text, child.process.returncode, error_lines)


def _read_until(pipe: int, deadline: float) -> tuple[bytes, bool]:
    """All that comes through a pipe, and whether the deadline passed before its end."""
    parts: list[bytes] = []
    while True:
        remaining_s = max(0.0, deadline - time.monotonic())
        if not select([pipe], [], [], remaining_s)[0]:
            return b"".join(parts), True
        part = os.read(pipe, 65536)
        if not part:
            return b"".join(parts), False
        parts.append(part)


def _result(plugin: Plugin, text: bytes, exit_code: int, error_lines: Sequence[str]) -> ProbeResult:
    if not text:
        how = f"signal {-exit_code}" if exit_code < 0 else f"exit code {exit_code}"
        last = f": {error_lines[-1]}" if error_lines else ""
        return ProbeResult(plugin, failure=f"the process ended with {how}{last}")
    try:
        answer = msgspec.json.decode(text, type=ProbeAnswer)
    except msgspec.DecodeError as error:
        return ProbeResult(plugin, failure=f"the answer is malformed: {error}")
    foreign = {each.device_type for each in answer.devices} - set(plugin.manifest.device_types)
    if foreign:
        return ProbeResult(
            plugin,
            failure=f"it answered with device type '{min(foreign)}', which is not in its manifest",
        )
    return ProbeResult(plugin, tuple(answer.devices), answer.failure)
