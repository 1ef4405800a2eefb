"""Plugin and PluginSet: what discovery found, loaded and set aside."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pluggy

from chiplet.api import (
    Check,
    CheckStatus,
    DeviceProbe,
    ModelEntry,
    PluginContext,
    QuantizationFormat,
    StoredFormat,
)
from chiplet.errors import PluginError
from chiplet.plugins.isolation import FAULTS, is_text
from chiplet.plugins.lifecycle import Told, shut_down
from chiplet.plugins.manifest import Manifest, PluginKind, normalized
from chiplet.plugins.patience import patience

logger = logging.getLogger(__name__)

OfferT = TypeVar("OfferT")

CORE_DISTRIBUTION = "chiplet"


@dataclass(frozen=True, slots=True)
class Plugin:
    """A loaded plugin.

    Attributes:
        distribution: the name that `--plugins` and `--no-plugin` take.
        module: where its hooks are.
        hooks: relay to its hooks alone; each plugin has its own, so that one cannot disturb
            another.
        context: what it has been told.
    """

    distribution: str
    version: str
    module: str
    manifest: Manifest
    hooks: pluggy.HookRelay
    context: PluginContext

    @property
    def name(self) -> str:
        """For people."""
        return self.manifest.name

    @property
    def is_core(self) -> bool:
        """Whether it is one of core's own."""
        return self.distribution == CORE_DISTRIBUTION

    @property
    def told(self) -> Told:
        """As those are told the end who were told the beginning."""
        return self.distribution, self.hooks, self.context

    def has(self, hook: str) -> bool:
        """Whether it implements a hook."""
        return bool(getattr(self.hooks, hook).get_hookimpls())

    def call(self, hook: str, **arguments: object) -> Any:
        """What its hook returns; None if it does not implement it.

        Raises:
            Exception: whatever the hook raises.
        """
        with patience(f"hook {hook} of {self.distribution}"):
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
        explicit: normalized names of distributions that the user named: what is wrong with them
            ends the start.
    """

    loaded: tuple[Plugin, ...]
    quarantined: tuple[Quarantined, ...] = ()
    blocked: tuple[str, ...] = ()
    explicit: frozenset[str] = frozenset()

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

    def shut_down(self) -> None:
        """Tell every plugin, the last one first, that it is used no more; never raises.

        Blocks for a few seconds if one hangs.
        """
        shut_down(each.told for each in reversed(self.loaded))

    def model_entries(self) -> tuple[ModelEntry, ...]:
        """Model families of all plugins; core's own first."""
        return tuple(each for _, each in self.offers("models", ModelEntry))

    def quantization_formats(self) -> tuple[QuantizationFormat, ...]:
        """Quantization formats of all plugins; core's own first."""
        return tuple(each for _, each in self.offers("quantization_formats", QuantizationFormat))

    def stored_formats(self) -> tuple[StoredFormat, ...]:
        """Formats of quantized checkpoints of all plugins; core's own first."""
        return tuple(each for _, each in self.offers("stored_formats", StoredFormat))

    def offers(
        self, hook: str, kind: type[OfferT], **arguments: object
    ) -> Iterator[tuple[Plugin, OfferT]]:
        """What the plugins' hooks of one name return, each with its plugin; core's own first.

        A plugin whose hook raises, or returns something else, is passed over with a warning.

        Args:
            hook: one that returns a sequence.
            kind: class of what it returns, or protocol that this has all names of.
            arguments: of the hook.

        Raises:
            PluginError: it is one of `explicit`.
        """
        for plugin in self.loaded:
            try:
                found: list[OfferT] = list(plugin.call(hook, **arguments) or ())
                wrong = [each for each in found if not _is_a(each, kind)]
                if wrong:
                    raise TypeError(f"it returned {wrong[0]!r}")
            except FAULTS as error:
                text = (
                    f"Hook {hook} of {plugin.distribution} raised {type(error).__name__}: {error}."
                )
                if normalized(plugin.distribution) in self.explicit:
                    remedy = f"Update {plugin.distribution}, or do not ask for it."
                    raise PluginError(text, remedy=remedy) from error
                logger.warning("%s What it offers is left out.", text)
            else:
                yield from ((plugin, each) for each in found)

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
            for each in plugin.call("doctor", device=device) or ():
                if not (isinstance(each, Check) and is_text(each.detail)):
                    raise TypeError(f"it returned {each!r}")
                yield each
    except FAULTS as error:
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


def _is_a(value: object, kind: type[Any]) -> bool:
    """Whether something is of a class, or has the names that a protocol asks for."""
    if not getattr(kind, "_is_protocol", False):
        return isinstance(value, kind)
    names = {*kind.__annotations__, *(each for each in vars(kind) if not each.startswith("_"))}
    return all(hasattr(value, each) for each in names)
