"""Command: what a sub-command takes, and what a person gave it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from chiplet.cli.settings import Setting, settings_of
from chiplet.config import (
    CacheOptions,
    DeviceOptions,
    EngineConfig,
    LogOptions,
    ModelOptions,
    ScheduleOptions,
)
from chiplet.sampling_params import SamplingParams

ENGINE_GROUPS: Mapping[str, type] = {
    "model": ModelOptions,
    "cache": CacheOptions,
    "schedule": ScheduleOptions,
    "device": DeviceOptions,
    "log": LogOptions,
}
"""Options classes of `EngineConfig` by the names of its fields."""

SERVER_ONLY = frozenset({"schedule.max_queued_requests", "log.log_requests"})
"""Paths of engine settings that have no meaning without a server."""

OptionsT = TypeVar("OptionsT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Positional:
    """A word that stands without a flag, and may be left out.

    Attributes:
        sets: path of the setting that it gives, like 'model.model'.
    """

    name: str
    help: str
    sets: str


MODEL = Positional(
    name="model",
    help="Model folder, GGUF file, catalogue name or hub name; the demo model if not given.",
    sets="model.model",
)
"""The model as the word after the command."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What a person gave to a command.

    Attributes:
        values: by path, like 'cache.page_size'; only what was given.
        command_line: all words, for reports.
    """

    values: Mapping[str, object]
    command_line: tuple[str, ...] = ()

    def options(self, group: str, defaults: OptionsT) -> OptionsT:
        """An options object with the values that were given for its group."""
        changes = {
            path.partition(".")[2]: value
            for path, value in self.values.items()
            if path.partition(".")[0] == group
        }
        return replace(defaults, **changes)  # type: ignore[type-var]

    def engine_config(self) -> EngineConfig:
        """The engine's settings, with `explicit` naming what was given."""
        groups = {name: self.options(name, options()) for name, options in ENGINE_GROUPS.items()}
        explicit = frozenset(
            path for path in self.values if path.partition(".")[0] in ENGINE_GROUPS
        )
        return EngineConfig(**groups, explicit=explicit)

    def sampling(self, defaults: SamplingParams) -> SamplingParams:
        """How to pick tokens.

        Raises:
            RequestError: a value is out of range.
        """
        return self.options("sampling", defaults)


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A sub-command.

    Attributes:
        name: full name, like 'bench latency'.
        summary: one sentence for the help.
        run: does the work and returns the exit code.
        groups: options classes by group name; each of their fields is a flag.
        without: paths of fields that are no flags of this command.
        takes_config_file: whether `--config FILE` is a flag.
    """

    name: str
    summary: str
    run: Callable[[Given], int]
    groups: Mapping[str, type]
    positional: Positional | None = None
    without: frozenset[str] = field(default_factory=frozenset[str])
    takes_config_file: bool = True

    def settings(self) -> dict[str, Setting]:
        """All settings by path, in the order of the help."""
        return {
            setting.path: setting
            for group, options in self.groups.items()
            for setting in settings_of(group, options)
            if setting.path not in self.without
        }
