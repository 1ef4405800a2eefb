"""`chiplet doctor`: what is installed, what was found, and how to mend what is wrong."""

from __future__ import annotations

import json
import platform
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from packaging.version import Version

from chiplet import __version__
from chiplet.api import Check, CheckStatus
from chiplet.cli.command import Command, Given
from chiplet.cli.settings import command_option
from chiplet.config import DeviceOptions
from chiplet.errors import ConfigError

if TYPE_CHECKING:
    from chiplet.plugins import PluginSet
    from chiplet.plugins.plugin_set import ProbeResult

OLDEST_TORCH = Version("2.8")
LITTLE_DISK_BYTES = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorOptions:
    """Output: for people or for programs."""

    json: bool = command_option(False, "Print JSON.")


def run(given: Given) -> int:
    """Print all checks; 1 if any of them is a problem."""
    checks = [
        *_version_checks(),
        *_plugin_checks(given.options("device", DeviceOptions())),
        *_model_checks(),
    ]
    if given.options("output", DoctorOptions()).json:
        print(json.dumps([asdict(each) for each in checks], indent=2))
    else:
        print("\n".join(_lines(checks)))
    return int(any(each.status is CheckStatus.PROBLEM for each in checks))


def _lines(checks: Sequence[Check]) -> Iterator[str]:
    width = max(len(each.name) for each in checks)
    for each in checks:
        remedy = f"  fix: {each.remedy}" if each.remedy else ""
        detail = " ".join(each.detail.split())
        yield f"{each.status:<8} {each.name:<{width}}  {detail}{remedy}"


def _version_checks() -> Iterator[Check]:
    yield Check("chiplet", CheckStatus.OK, __version__)
    yield Check("python", CheckStatus.OK, f"{platform.python_version()} at {sys.executable}")
    try:
        torch = version("torch")
    except PackageNotFoundError:
        yield Check(
            "torch", CheckStatus.PROBLEM, "not installed", f"pip install 'torch>={OLDEST_TORCH}'"
        )
        return
    if Version(torch) < OLDEST_TORCH:
        remedy = f"pip install 'torch>={OLDEST_TORCH}'"
        yield Check("torch", CheckStatus.PROBLEM, f"{torch} is too old", remedy)
    else:
        yield Check("torch", CheckStatus.OK, torch)


def _plugin_checks(options: DeviceOptions) -> Iterator[Check]:
    from chiplet.plugins import discover
    from chiplet.plugins.probe import probe_all

    try:
        plugins = discover(options)
    except ConfigError as error:
        yield _problem("plugins", error)
        return
    for plugin in plugins.loaded:
        interfaces = ", ".join(f"{name} {span}" for name, span in plugin.manifest.api.items())
        detail = f"{plugin.version}, {plugin.manifest.kind}; {interfaces}"
        yield Check(f"{plugin.distribution}/{plugin.name}", CheckStatus.OK, detail)
    for name in plugins.blocked:
        yield Check(name, CheckStatus.OK, "left out by --plugins or --no-plugin")
    probes = probe_all(plugins.platforms)
    yield from _device_checks(plugins, probes, options)
    yield from plugins.doctor(probes)


def _device_checks(
    plugins: PluginSet, probes: Sequence[ProbeResult], options: DeviceOptions
) -> Iterator[Check]:
    from chiplet.plugins import choose_device

    for device in (device for probe in probes for device in probe.devices):
        facts = ", ".join(f"{name} {value}" for name, value in device.facts.items())
        detail = f"{device.name}, {device.total_memory_bytes / 2**30:.1f} GiB"
        label = f"device {device.device_type}:{device.index}"
        yield Check(label, CheckStatus.OK, f"{detail}, {facts}" if facts else detail)
    try:
        chosen = choose_device(plugins, options)
    except ConfigError as error:
        yield _problem("chosen device", error)
        return
    yield Check("chosen device", CheckStatus.OK, f"{chosen.label} by {chosen.plugin_name}")
    for warning in chosen.warnings:
        yield Check("chosen device", CheckStatus.WARNING, warning)


def _model_checks() -> Iterator[Check]:
    from chiplet.formats.catalogue import cache_folder, catalogue

    folder = cache_folder()
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    free_bytes = shutil.disk_usage(existing).free
    detail = f"{folder}, {free_bytes / 2**30:.1f} GiB free"
    if free_bytes < LITTLE_DISK_BYTES:
        yield Check("model cache", CheckStatus.WARNING, detail, "Free some disk space.")
    else:
        yield Check("model cache", CheckStatus.OK, detail)
    for entry in catalogue():
        if entry.is_cached:
            yield Check(f"model {entry.name}", CheckStatus.OK, str(entry.path))
        else:
            remedy = f"chiplet pull {entry.name}"
            yield Check(f"model {entry.name}", CheckStatus.WARNING, "not in the cache", remedy)


def _problem(name: str, error: ConfigError) -> Check:
    return Check(name, CheckStatus.PROBLEM, error.problem, error.remedy)


COMMAND = Command(
    name="doctor",
    summary="Check versions, plugins, devices and the model cache; exit code 1 on a problem.",
    run=run,
    groups={"output": DoctorOptions, "device": DeviceOptions},
)
