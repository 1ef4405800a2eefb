"""One start's measurements: what they depend on, where they are kept, and how far they are."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager

import torch
from rich.console import Console

from chiplet.plugins.autotune.cache import MeasurementCache, cache_folder
from chiplet.plugins.autotune.measure import DeviceStopwatch
from chiplet.plugins.autotune.tuner import EFFORTS, Tuner
from chiplet.plugins.device import ChosenDevice
from chiplet.plugins.plugin_set import PluginSet


@contextmanager
def tuning(plugins: PluginSet, chosen: ChosenDevice, setting: str) -> Generator[Tuner | None]:
    """A tuner while choices are made, if the setting wants one; what it measured is then kept."""
    if setting == "off":
        yield None
        return
    cache = MeasurementCache(cache_folder(), _machine(plugins, chosen))
    with Console(stderr=True).status("Measuring") as status:
        tuner = Tuner(
            DeviceStopwatch(chosen.platform), cache, EFFORTS[setting], notify=status.update
        )
        yield tuner
    tuner.finish()


def _machine(plugins: PluginSet, chosen: ChosenDevice) -> str:
    """All that a time depends on beside the work and who does it; as text."""
    probe = chosen.probe
    version = next(
        each.version for each in plugins.loaded if each.distribution == chosen.plugin_name
    )
    facts = {
        "device": probe.device_type,
        "name": probe.name,
        "memory_bytes": probe.total_memory_bytes,
        "facts": dict(probe.facts),
        "platform": f"{chosen.plugin_name} {version}",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    return json.dumps(facts, sort_keys=True)
