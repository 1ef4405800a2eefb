"""Pins and denials: the user's own word on who serves an operation, or does not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from chiplet.api import Op
from chiplet.config import DeviceOptions
from chiplet.errors import ConfigError
from chiplet.plugins.candidates import FAMILIES


@dataclass(frozen=True, slots=True)
class Pins:
    """Providers by operation, as `--use` and `--attention-backend` gave them.

    Attributes:
        providers: provider by operation ('linear/qkv_proj') or family ('linear').
        used: keys of `providers` that applied to a request; grows.
    """

    providers: Mapping[str, str]
    used: set[str] = field(default_factory=set[str])

    def find(self, operation: str) -> str | None:
        """The provider pinned for an operation: its own pin first, then that of its family.

        Mutates: `used`.
        """
        for key in (operation, operation.partition("/")[0]):
            if key in self.providers:
                self.used.add(key)
                return self.providers[key]
        return None

    def unused(self) -> list[str]:
        """Keys that applied to no request."""
        return sorted(self.providers.keys() - self.used)


@dataclass(frozen=True, slots=True)
class Denials:
    """Providers that are not to serve.

    Attributes:
        reasons: why, by operation or family and provider; grows when one fails in a step.
    """

    reasons: dict[tuple[str, str], str]

    def find(self, operation: str, provider: str) -> str | None:
        """Why a provider must not serve an operation; None if it may."""
        for key in (operation, operation.partition("/")[0]):
            if (key, provider) in self.reasons:
                return self.reasons[key, provider]
        return None


def parse_pins(options: DeviceOptions) -> Pins:
    """The pins in the options.

    Raises:
        ConfigError: a pin is malformed, names no operation, or contradicts another.
    """
    providers: dict[str, str] = {}
    texts = list(options.use)
    if options.attention_backend is not None:
        texts.append(f"attention={options.attention_backend}")
    for text in texts:
        key, provider = _parse("--use", text)
        if providers.setdefault(key, provider) != provider:
            raise ConfigError(
                f"'{key}' is pinned to both '{providers[key]}' and '{provider}'.",
                remedy="Keep one of the two.",
            )
    return Pins(providers)


def parse_denials(options: DeviceOptions, pins: Pins) -> Denials:
    """The denials in the options.

    Raises:
        ConfigError: one is malformed, names no operation, or contradicts a pin.
    """
    reasons: dict[tuple[str, str], str] = {}
    for text in options.deny:
        key, provider = _parse("--deny", text)
        if pins.providers.get(key) == provider:
            raise ConfigError(
                f"'{provider}' is both pinned and denied for '{key}'.",
                remedy="Keep one of '--use' and '--deny'.",
            )
        reasons[key, provider] = f"denied by --deny {text}"
    return Denials(reasons)


def _parse(flag: str, text: str) -> tuple[str, str]:
    key, _, provider = text.partition("=")
    family, slash, name = key.partition("/")
    if not provider or family not in FAMILIES or (slash and not name):
        raise ConfigError(
            f"'{flag} {text}' names no operation and provider; operations: {', '.join(FAMILIES)}, "
            "each with an optional '/NAME'.",
            remedy="Write it like 'attention/global=reference' or 'linear=reference'.",
        )
    if family == "ops" and name and name not in list(Op):
        raise ConfigError(
            f"'{flag} {text}': there is no operation '{name}'; there are: {', '.join(Op)}.",
            remedy="Correct the name.",
        )
    return key, provider
