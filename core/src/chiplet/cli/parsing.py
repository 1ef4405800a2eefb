"""From words to values: the parser of a command, and the configuration file."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn

from rich_argparse import RichHelpFormatter

from chiplet.cli.command import Command, Given
from chiplet.cli.settings import (
    Setting,
    Shape,
    from_file,
    from_text,
    shown_default,
    suggestion,
    title_of,
)
from chiplet.errors import ConfigError

CONFIG_HELP = "YAML file of settings; keys are field names, and flags win over it."


class HelpFormatter(RichHelpFormatter):
    """Help with headings as they are written in the options classes."""

    group_name_formatter = staticmethod(str)

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are ConfigErrors, so that one place prints them all."""

    def error(self, message: str) -> NoReturn:
        """Raises ConfigError instead of printing the usage and leaving."""
        text = message[0].upper() + message[1:]
        raise ConfigError(f"{text}.", remedy=f"See '{self.prog} --help'.")


def parser_of(command: Command) -> Parser:
    """The parser of a command; values stay text until `parse` looks at them."""
    prog = f"chiplet {command.name}"
    positional = command.positional
    usage = f"{prog} [{positional.name.upper()}] [FLAG ...]" if positional else f"{prog} [FLAG ...]"
    parser = Parser(
        prog=prog,
        usage=usage,
        description=command.summary,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
        add_help=False,
        argument_default=argparse.SUPPRESS,
    )
    general = parser.add_argument_group("General")
    general.add_argument("-h", "--help", action="help", help="Show this help and leave.")
    if command.takes_config_file:
        general.add_argument("--config", metavar="FILE", help=CONFIG_HELP)
    if positional:
        general.add_argument(
            positional.name, metavar=positional.name.upper(), nargs="?", help=positional.help
        )
    settings = command.settings().values()
    for group, options in command.groups.items():
        heading = parser.add_argument_group(title_of(options))
        for setting in settings:
            if setting.group == group:
                _add_flag(heading, setting)
    return parser


def parse(command: Command, words: Sequence[str]) -> Given:
    """What a person gave, checked; flags win over the configuration file.

    Raises:
        ConfigError: a flag is unknown or a value is not allowed.
    """
    settings = command.settings()
    known, extra = parser_of(command).parse_known_args(list(words))
    if extra:
        raise _unknown(command, settings.values(), extra[0])
    typed: dict[str, list[str] | str | bool] = vars(known)
    values: dict[str, object] = {}
    if "config" in typed and command.takes_config_file:
        values |= _read_config_file(Path(str(typed.pop("config"))), command)
    positional = command.positional
    if positional and positional.name in typed:
        word = str(typed.pop(positional.name))
        if positional.sets in typed:
            raise ConfigError(
                f"{positional.name.upper()} is given twice: '{word}' and "
                f"{settings[positional.sets].flag}.",
                remedy="Give one of them.",
            )
        values[positional.sets] = word
    for path, given in typed.items():
        if isinstance(given, bool):
            values[path] = given
        else:
            values[path] = from_text(settings[path], [given] if isinstance(given, str) else given)
    return Given(values=values, command_line=("chiplet", *command.name.split(), *words))


def _add_flag(heading: argparse._ArgumentGroup, setting: Setting) -> None:  # pyright: ignore[reportPrivateUsage] - argparse has no public name for it
    default = shown_default(setting)
    text = setting.info.help + (f" (default: {default})" if default else "")
    text = text.replace("%", "%%")
    if setting.kind is bool:
        action = argparse.BooleanOptionalAction
        heading.add_argument(setting.flag, dest=setting.path, action=action, help=text)
        return
    heading.add_argument(
        setting.flag,
        dest=setting.path,
        action="store" if setting.shape is Shape.SINGLE else "append",
        metavar=setting.metavar,
        help=text,
    )


def flags_of(command: Command) -> list[str]:
    """All flags that a command takes."""
    flags = ["--help"] + (["--config"] if command.takes_config_file else [])
    for setting in command.settings().values():
        flags.append(setting.flag)
        if setting.kind is bool:
            flags.append("--no-" + setting.flag[2:])
    return flags


def _unknown(command: Command, settings: Iterable[Setting], word: str) -> ConfigError:
    see = f"See 'chiplet {command.name} --help'."
    if not word.startswith("-"):
        return ConfigError(f"Unexpected argument '{word}'.", remedy=see)
    flag = word.partition("=")[0]
    if flag.replace("_", "-") in flags_of(command):
        return ConfigError(
            f"Unknown flag '{flag}'.", remedy=f"Did you mean '{flag.replace('_', '-')}'?"
        )
    return ConfigError(f"Unknown flag '{flag}'.", remedy=suggestion(flag, flags_of(command)) or see)


def _read_config_file(path: Path, command: Command) -> dict[str, object]:
    import yaml  # not needed unless there is a file, and slow to import

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"--config {path} cannot be read: {error.strerror}.", remedy="Check the path."
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"--config {path} is not YAML: {reason}.", remedy="Write lines like 'page_size: 16'."
        ) from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(
            f"--config {path} holds no mapping.", remedy="Write lines like 'page_size: 16'."
        )
    by_name = {setting.name: setting for setting in command.settings().values()}
    values: dict[str, object] = {}
    for key, value in content.items():
        setting = by_name.get(str(key))
        if setting is None:
            raise ConfigError(
                f"--config {path}: unknown key '{key}' for 'chiplet {command.name}'.",
                remedy=suggestion(str(key), by_name) or "Keys are flag names with underscores.",
            )
        values[setting.path] = from_file(setting, value)
    return values
