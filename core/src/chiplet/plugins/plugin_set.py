"""Plugin and PluginSet: what discovery found, loaded and set aside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pluggy

from chiplet.api import Check, CheckStatus, DeviceProbe, ModelEntry, QuantizationFormat
from chiplet.plugins.manifest import Manifest, PluginKind

CORE_DISTRIBUTION = "chiplet"


@dataclass(frozen=True, slots=True)
class Plugin:
    """A loaded plugin.

    Attributes:
        distribution: the name that `--plugins` and `--no-plugin` take.
        module: where its hooks are.
        hooks: relay to its hooks alone; each plugin has its own, so that one cannot disturb
            another.
    """

    distribution: str
    version: str
    module: str
    manifest: Manifest
    hooks: pluggy.HookRelay

    @property
    def name(self) -> str:
        """For people."""
        return self.manifest.name

    @property
    def is_core(self) -> bool:
        """Whether it is one of core's own."""
        return self.distribution == CORE_DISTRIBUTION

    def has(self, hook: str) -> bool:
        """Whether it implements a hook."""
        return bool(getattr(self.hooks, hook).get_hookimpls())

    def call(self, hook: str, **arguments: object) -> Any:
        """What its hook returns; None if it does not implement it.

        Raises:
            Exception: whatever the hook raises.
        """
        results = getattr(self.hooks, hook)(**arguments)
        return results[0] if results else None


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A plugin that was found and not loaded.

    Attributes:
        reason: why, one sentence without a period.
        manifest: None if it could not be read.
    """

    distribution: str
    version: str
    module: str
    reason: str
    manifest: Manifest | None = None

    @property
    def may_be_platform(self) -> bool:
        """Whether a device may be missing with it; true if nothing is known of it."""
        return self.manifest is None or self.manifest.kind is PluginKind.PLATFORM


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What a platform plugin's probe found.

    Attributes:
        failure: why there is no answer (a crash, a hang, an exception), or empty.
    """

    plugin: Plugin
    devices: tuple[DeviceProbe, ...] = ()
    failure: str = ""


@dataclass(frozen=True, slots=True)
class PluginSet:
    """All plugins of this installation.

    Attributes:
        loaded: core's own first, then by distribution.
        quarantined: found, and not loaded.
        blocked: distributions left out by `--plugins` or `--no-plugin`.
    """

    loaded: tuple[Plugin, ...]
    quarantined: tuple[Quarantined, ...] = ()
    blocked: tuple[str, ...] = ()

    @property
    def platforms(self) -> tuple[Plugin, ...]:
        """Plugins that bring a kind of device, core's reference platform excepted."""
        return tuple(
            plugin
            for plugin in self.loaded
            if plugin.manifest.kind is PluginKind.PLATFORM and not plugin.is_core
        )

    @property
    def reference(self) -> Plugin:
        """Core's reference platform."""
        return next(
            plugin
            for plugin in self.loaded
            if plugin.is_core and plugin.manifest.kind is PluginKind.PLATFORM
        )

    def model_entries(self) -> tuple[ModelEntry, ...]:
        """Model families of all plugins; core's own first."""
        return tuple(entry for plugin in self.loaded for entry in plugin.call("models") or ())

    def quantization_formats(self) -> tuple[QuantizationFormat, ...]:
        """Quantization formats of all plugins; core's own first."""
        return tuple(
            each for plugin in self.loaded for each in plugin.call("quantization_formats") or ()
        )

    def doctor(self, probes: Sequence[ProbeResult]) -> tuple[Check, ...]:
        """Checks of every plugin, and one for each plugin that failed; never raises."""
        found = {result.plugin.distribution: result for result in probes}
        checks = [_quarantine_check(each) for each in self.quarantined]
        for plugin in self.loaded:
            result = found.get(plugin.distribution)
            if result is not None and result.failure:
                checks.append(_probe_check(result))
            devices = result.devices if result is not None else ()
            checks.extend(_doctor_checks(plugin, devices))
        return tuple(checks)


def _doctor_checks(plugin: Plugin, devices: Sequence[DeviceProbe]) -> Iterator[Check]:
    try:
        for device in devices or (None,):
            yield from plugin.call("doctor", device=device) or ()
    except Exception as error:
        yield Check(
            plugin.name,
            CheckStatus.PROBLEM,
            f"hook doctor of {plugin.distribution} raised {type(error).__name__}: {error}",
            f"Report it to the author of {plugin.distribution}.",
        )


def _quarantine_check(each: Quarantined) -> Check:
    return Check(
        each.distribution,
        CheckStatus.PROBLEM,
        f"{each.version} is not loaded: {each.reason}",
        f"Update or uninstall {each.distribution}, or pass --no-plugin {each.distribution}.",
    )


def _probe_check(result: ProbeResult) -> Check:
    return Check(
        result.plugin.distribution,
        CheckStatus.PROBLEM,
        f"probe failed: {result.failure}",
        f"Check the driver, or pass --no-plugin {result.plugin.distribution}.",
    )
