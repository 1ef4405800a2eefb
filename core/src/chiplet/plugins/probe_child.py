"""The other end of a probe: runs one plugin's `probe` hook and writes the answer to a pipe."""

from __future__ import annotations

import os
from importlib import import_module

import msgspec
import pluggy

from chiplet import hooks
from chiplet.api import DeviceProbe, HostFacts


class ProbeTask(msgspec.Struct, frozen=True):
    """What the child is asked to do.

    Attributes:
        module: where the plugin's hooks are.
        answer_pipe: file descriptor that the answer is written to.
        import_path: `sys.path` of the parent.
    """

    module: str
    host: HostFacts
    answer_pipe: int
    import_path: list[str]


class ProbeAnswer(msgspec.Struct, frozen=True):
    """What the child answers: devices, or why there are none to be had."""

    devices: list[DeviceProbe] = []
    failure: str = ""


def main(text: str) -> None:
    """Run the probe described by a task in JSON."""
    task = msgspec.json.decode(text, type=ProbeTask)
    try:
        answer = msgspec.json.encode(ProbeAnswer(_probe(task)))
    except Exception as error:
        failure = f"it raised {type(error).__name__}: {error}"
        answer = msgspec.json.encode(ProbeAnswer(failure=failure))
    with os.fdopen(task.answer_pipe, "wb") as pipe:
        pipe.write(answer)


def _probe(task: ProbeTask) -> list[DeviceProbe]:
    manager = pluggy.PluginManager("chiplet")
    manager.add_hookspecs(hooks)
    manager.register(import_module(task.module))
    return [device for devices in manager.hook.probe(host=task.host) for device in devices]
