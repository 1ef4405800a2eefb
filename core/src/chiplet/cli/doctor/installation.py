"""Plugins and devices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from chiplet.api import Check
from chiplet.cli.doctor.report import fault, ok, problem, warning
from chiplet.config import DeviceOptions
from chiplet.errors import ConfigError
from chiplet.plugins import ChosenDevice, PluginSet, choose_device, discover
from chiplet.plugins.discovery import duplicates
from chiplet.plugins.plugin_set import ProbeResult
from chiplet.plugins.probe import probe_all


@dataclass(frozen=True, slots=True)
class Installation:
    """Plugins and devices as a start would find them.

    Attributes:
        chosen: the device that a start would take; None if it would refuse.
        refusal: why it would.
    """

    plugins: PluginSet
    probes: Sequence[ProbeResult]
    chosen: ChosenDevice | None
    refusal: ConfigError | None


def open_installation(options: DeviceOptions) -> Installation:
    """Discover, probe and choose; who asks tells the plugins the end.

    Raises:
        ConfigError: a plugin that was asked for cannot be used.
    """
    plugins = discover(options)
    probes = probe_all(plugins.platforms)
    try:
        return Installation(plugins, probes, choose_device(plugins, options), None)
    except ConfigError as error:
        return Installation(plugins, probes, None, error)


def check_plugins(installation: Installation) -> Iterator[Check]:
    """Every plugin, its devices, the device chosen, and what plugins check themselves."""
    plugins = installation.plugins
    for plugin in plugins.loaded:
        interfaces = ", ".join(f"{name} {span}" for name, span in plugin.manifest.api.items())
        detail = f"{plugin.version}, {plugin.manifest.kind}; {interfaces}"
        for key, meaning in plugin.manifest.options.items():
            detail += f"; option {key}: {meaning}"
        yield ok(f"{plugin.distribution}/{plugin.name}", detail)
    for name in plugins.blocked:
        yield ok(name, "left out by --plugins or --no-plugin")
    for name, versions in duplicates().items():
        yield fault(
            name,
            f"installed {len(versions)} times ({', '.join(versions)}); which one is imported "
            "depends on the path",
            f"pip uninstall {name} until none is left, then install it once.",
        )
    yield from _devices(installation)
    yield from plugins.doctor(installation.probes)


def _devices(installation: Installation) -> Iterator[Check]:
    for device in (device for probe in installation.probes for device in probe.devices):
        facts = ", ".join(f"{name} {value}" for name, value in device.facts.items())
        detail = f"{device.name}, {device.total_memory_bytes / 2**30:.1f} GiB"
        label = f"device {device.device_type}:{device.index}"
        yield ok(label, f"{detail}, {facts}" if facts else detail)
    chosen = installation.chosen
    if chosen is None:
        assert installation.refusal is not None
        yield problem("chosen device", installation.refusal)
        return
    yield ok("chosen device", f"{chosen.label} by {chosen.plugin_name}")
    for text in chosen.warnings:
        remedy = "Mend or install the plugin, or name the device with '--device'."
        yield warning("chosen device", text, remedy)
