"""The other end of a probe: runs one plugin's `probe` hook and writes the answer to a pipe."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

import msgspec
import pluggy

from chiplet import hooks
from chiplet.api import DeviceProbe, HostFacts, PluginContext


class ProbeTask(msgspec.Struct, frozen=True):
    """What the child is asked to do.

    Attributes:
        module: where the plugin's hooks are.
        answer_pipe: file descriptor that the answer is written to.
        import_path: `sys.path` of the parent.
        options, cache_folder: see `PluginContext`.
    """

    module: str
    host: HostFacts
    options: Mapping[str, str]
    cache_folder: str
    answer_pipe: int
    import_path: list[str]


class ProbeAnswer(msgspec.Struct, frozen=True):
    """What the child answers: devices, or why there are none to be had."""

    devices: list[DeviceProbe] = []
    failure: str = ""


def main(text: str) -> None:
    """Run the probe described by a task in JSON."""
    task = msgspec.json.decode(text, type=ProbeTask)
    context = PluginContext(
        options=task.options, cache_folder=Path(task.cache_folder), host=task.host
    )
    manager = pluggy.PluginManager("chiplet")
    manager.add_hookspecs(hooks)
    is_told = False
    try:
        manager.register(import_module(task.module))
        manager.hook.configure(context=context)
        is_told = True
        answer = msgspec.json.encode(ProbeAnswer(_probe(manager.hook, task.host)))
    except (Exception, SystemExit) as error:
        failure = f"it raised {type(error).__name__}: {error}"
        answer = msgspec.json.encode(ProbeAnswer(failure=failure))
    with os.fdopen(task.answer_pipe, "wb") as pipe:
        pipe.write(answer)
    # After the answer: who waits for it kills a process that does not end.
    if is_told:
        manager.hook.shutdown(context=context)


def _probe(hooks: pluggy.HookRelay, host: HostFacts) -> list[DeviceProbe]:
    return [device for devices in hooks.probe(host=host) for device in devices]
