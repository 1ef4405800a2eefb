"""`chiplet pull`: fetches a model of the catalogue."""

from __future__ import annotations

from dataclasses import dataclass

from chiplet.cli.command import Command, Given, Positional
from chiplet.cli.settings import command_option
from chiplet.errors import ConfigError
from chiplet.formats.catalogue import catalogue, pull


@dataclass(frozen=True, slots=True, kw_only=True)
class PullOptions:
    """Pull: what is fetched."""

    name: str | None = command_option(None, "Name in the catalogue.")
    list: bool = command_option(False, "Show the catalogue and what is in the cache already.")


def run(given: Given) -> int:
    """Fetch, or show what can be fetched."""
    options = given.options("pull", PullOptions())
    if options.list:
        if options.name is not None:
            raise ConfigError("--list stands beside a name.", remedy="Give one of them.")
        for entry in catalogue():
            size = f"{entry.size_bytes / 1e6:.0f} MB"
            state = "in the cache" if entry.is_cached else "not fetched"
            print(f"{entry.name:<20}{size:>8}  {state:<14}{entry.license:<12}{entry.description}")
        return 0
    if options.name is None:
        raise ConfigError("There is no name.", remedy="See 'chiplet pull --list'.")
    print(pull(options.name))
    return 0


COMMAND = Command(
    name="pull",
    summary="Fetch a model of the catalogue into the cache folder; does nothing if it is there.",
    run=run,
    groups={"pull": PullOptions},
    positional=Positional(name="name", help="Name in the catalogue.", sets="pull.name"),
    without=frozenset({"pull.name"}),
    takes_config_file=False,
)
