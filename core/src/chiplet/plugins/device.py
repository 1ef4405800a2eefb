"""Choice of the device: by name, or the only kind there is; never another one silently."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from chiplet.api import DeviceProbe, Platform
from chiplet.config import DeviceOptions
from chiplet.errors import ConfigError, PluginError
from chiplet.plugins.host import host_facts
from chiplet.plugins.isolation import FAULTS
from chiplet.plugins.plugin_set import Plugin, PluginSet, ProbeResult, Quarantined
from chiplet.plugins.probe import Probes, start_probes


@dataclass(frozen=True, slots=True)
class ChosenDevice:
    """The device that the work runs on.

    Attributes:
        plugin_name: distribution of the platform plugin.
        warnings: what a person should know, one sentence each.
    """

    probe: DeviceProbe
    platform: Platform
    plugin_name: str
    warnings: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The device as `--device` takes it, like 'cpu:0'."""
        return f"{self.probe.device_type}:{self.probe.index}"


def choose_device(plugin_set: PluginSet, options: DeviceOptions) -> ChosenDevice:
    """The device that the options name, or the only one there is.

    Raises:
        ConfigError: no such device, or several kinds and none named.
        PluginError: the plugin of the device cannot be used.
    """
    return begin_choice(plugin_set, options).finish()


def begin_choice(plugin_set: PluginSet, options: DeviceOptions) -> DeviceChoice:
    """Start the probes that a choice needs; they run while the caller does something else.

    Raises:
        ConfigError: the options name a device in a way that cannot be read.
    """
    wanted = None if options.device is None else parse_device(options.device)
    probed = [
        plugin
        for plugin in plugin_set.platforms
        if wanted is None or wanted[0] in plugin.manifest.device_types
    ]
    # A device that the host stands in for need not be there: nobody is asked.
    probes = start_probes([] if options.emulate else probed)
    return DeviceChoice(plugin_set, wanted, probes, is_emulated=options.emulate)


class PendingDevice(Protocol):
    """A device that is being chosen; `DeviceChoice` is one."""

    @property
    def plugin_set(self) -> PluginSet:
        """The plugins among which it is chosen."""
        ...

    def finish(self) -> ChosenDevice:
        """The device; waits until it is known.

        Raises:
            ConfigError: there is none; see `choose_device`.
        """
        ...


@dataclass(frozen=True, slots=True)
class DeviceChoice:
    """A choice of the device under way.

    Attributes:
        wanted: type and index that the options name.
        is_emulated: the host's processor is to stand in for it.
    """

    plugin_set: PluginSet
    wanted: tuple[str, int] | None
    probes: Probes
    is_emulated: bool = False

    def finish(self) -> ChosenDevice:
        """The device, once the probes have ended; may be called once. Raises as `choose_device`."""
        reference = self.plugin_set.reference
        results = self.probes.results()
        if self.is_emulated:
            return _emulated(self.plugin_set, self.wanted)
        if self.wanted is None:
            if not self.plugin_set.platforms and not _missing_platforms(self.plugin_set):
                return _chosen(reference, _reference_device(reference), (_reference_warning(),))
            return _only_device(self.plugin_set, results)
        device_type, index = self.wanted
        if device_type in reference.manifest.device_types:
            return _named_device(ProbeResult(reference, (_reference_device(reference),)), index)
        if results:
            return _named_device(results[0], index, device_type)
        raise _unknown_device(self.plugin_set, device_type)


def _emulated(plugin_set: PluginSet, wanted: tuple[str, int] | None) -> ChosenDevice:
    """The stand-in for a device that need not be there."""
    able = [each for each in plugin_set.platforms if each.has("emulated")]
    types = sorted(word for each in able for word in each.manifest.device_types)
    listed = ", ".join(f"'--device {each}'" for each in types) or "none of those installed"
    if wanted is None:
        raise ConfigError("--emulate names no device.", remedy=f"Pass one with it: {listed}.")
    device_type, index = wanted
    for plugin in able:
        if device_type in plugin.manifest.device_types and index == 0:
            device: DeviceProbe = plugin.call("emulated", host=host_facts())
            warning = (
                f"Device '{device_type}' is EMULATED on this host's processor: its code, not its "
                "speed. Leave --emulate out to run on the device itself."
            )
            return _chosen(plugin, device, (warning,))
    if not any(device_type in each.manifest.device_types for each in plugin_set.platforms):
        raise _unknown_device(plugin_set, device_type)
    raise ConfigError(
        f"Device '{device_type}:{index}' cannot be emulated.", remedy=f"Devices that can: {listed}."
    )


def parse_device(text: str) -> tuple[str, int]:
    """Type and index of a device written like 'cpu' or 'cpu:0'.

    Raises:
        ConfigError: it is written otherwise.
    """
    device_type, colon, index = text.partition(":")
    if not device_type or (colon and not index.isdecimal()):
        raise ConfigError(
            f"Device '{text}' is not a device type with an optional index.",
            remedy="Write it like 'cpu' or 'cpu:0'.",
        )
    return device_type, int(index) if index else 0


def _only_device(plugin_set: PluginSet, results: Sequence[ProbeResult]) -> ChosenDevice:
    """The first device of the only kind found."""
    devices = {each.device_type: each for result in results for each in reversed(result.devices)}
    choice = ", ".join(f"'--device {each}'" for each in (*sorted(devices), "reference"))
    for missing in _missing_platforms(plugin_set):
        raise ConfigError(
            f"Platform plugin {missing.distribution} cannot be used ({missing.reason}), and no "
            "other device is taken in its place unless it is named.",
            remedy=f"Mend or uninstall {missing.distribution}, or pass {choice}.",
        )
    failures = tuple(
        f"The probe of {result.plugin.distribution} failed ({result.failure}); its devices count "
        "as absent."
        for result in results
        if result.failure
    )
    if not devices:
        names = ", ".join(result.plugin.distribution for result in results)
        reasons = f" {' '.join(failures)}" if failures else ""
        raise ConfigError(
            f"No device found by the platform plugins installed ({names}).{reasons}",
            remedy=f"Check driver and hardware with 'chiplet doctor', or pass {choice}.",
        )
    if len(devices) > 1:
        listed = ", ".join(f"{each} ({devices[each].name})" for each in sorted(devices))
        raise ConfigError(f"Several kinds of device found: {listed}.", remedy=f"Pass {choice}.")
    result = next(result for result in results if result.devices)
    return _chosen(result.plugin, result.devices[0], failures)


def _named_device(result: ProbeResult, index: int, device_type: str = "reference") -> ChosenDevice:
    """The device with an index among those that its plugin found."""
    devices = [each for each in result.devices if each.device_type == device_type]
    for device in devices:
        if device.index == index:
            return _chosen(result.plugin, device)
    if result.failure:
        raise PluginError(
            f"The probe of {result.plugin.distribution} failed: {result.failure}.",
            remedy="Check driver and hardware with 'chiplet doctor'.",
        )
    found = ", ".join(f"{each.device_type}:{each.index}" for each in devices) or "none"
    finder = result.plugin.distribution
    remedy = "Name one that was found, or check the hardware with 'chiplet doctor'."
    if result.plugin.has("emulated"):
        remedy += " For development, --emulate lets the host's processor stand in for it."
    raise ConfigError(
        f"Device '{device_type}:{index}' is not there; {finder} found: {found}.", remedy=remedy
    )


def _chosen(plugin: Plugin, device: DeviceProbe, warnings: tuple[str, ...] = ()) -> ChosenDevice:
    try:
        platform: Platform | None = plugin.call("platform", device=device)
    except FAULTS as error:
        raise PluginError(
            f"Plugin {plugin.distribution} cannot use {device.device_type}:{device.index}: hook "
            f"platform raised {type(error).__name__}: {error}.",
            remedy="Check the installation with 'chiplet doctor'.",
        ) from error
    if platform is None:
        raise PluginError(
            f"Plugin {plugin.distribution} gives no platform for a device that its probe found.",
            remedy=f"Report it to the author of {plugin.distribution}.",
        )
    return ChosenDevice(device, platform, plugin.distribution, warnings)


def _unknown_device(plugin_set: PluginSet, device_type: str) -> ConfigError:
    for missing in _missing_platforms(plugin_set):
        if missing.manifest is not None and device_type in missing.manifest.device_types:
            return PluginError(
                f"Device '{device_type}' is served by {missing.distribution}, which cannot be "
                f"used: {missing.reason}.",
                remedy=f"Update or reinstall {missing.distribution}.",
            )
    plugins: Sequence[Plugin] = (*plugin_set.platforms, plugin_set.reference)
    known = sorted(each for plugin in plugins for each in plugin.manifest.device_types)
    return ConfigError(
        f"Device '{device_type}' is served by no plugin installed; served: {', '.join(known)}.",
        remedy="Install the plugin that serves it, or name one of these.",
    )


def _missing_platforms(plugin_set: PluginSet) -> list[Quarantined]:
    return [each for each in plugin_set.quarantined if each.may_be_platform]


def _reference_device(reference: Plugin) -> DeviceProbe:
    # In this process: core's own probe touches no driver.
    return reference.call("probe", host=host_facts())[0]


def _reference_warning() -> str:
    return (
        "No platform plugin is installed: running on the reference platform, which is correct "
        "and slow. Install one, like chiplet-cpu."
    )
