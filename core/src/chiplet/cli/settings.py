"""Settings: fields of options classes as the command line and the configuration file see them.

A class in `chiplet.config` carries its help in the fields. A class that belongs to another room,
like `SamplingParams`, says it in the `Attributes` of its docstring.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from enum import Enum
from typing import Any, get_args, get_origin, get_type_hints

from chiplet.config import OptionInfo
from chiplet.errors import ConfigError


class Shape(Enum):
    """How many values a setting takes."""

    SINGLE = "single"
    MANY = "many"
    PAIRS = "pairs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One field that a person may set.

    Attributes:
        group: where it belongs, like 'cache' or 'sampling'.
        kind: type of a value, or of each value.
        value_kind: type of what stands behind '=' in pairs.
        info: help, choices and limits.
    """

    group: str
    name: str
    kind: type
    shape: Shape
    value_kind: type
    default: object
    info: OptionInfo

    @property
    def path(self) -> str:
        """Group and field, like 'cache.page_size'."""
        return f"{self.group}.{self.name}"

    @property
    def flag(self) -> str:
        """The flag, like '--page-size'."""
        return "--" + self.name.replace("_", "-")

    @property
    def metavar(self) -> str:
        """What stands for the value in help texts."""
        if self.info.choices:
            return "{" + ",".join(self.info.choices) + "}"
        if self.info.metavar:
            return self.info.metavar
        if self.shape is Shape.PAIRS:
            return "ID=NUMBER"
        return {int: "N", float: "X"}.get(self.kind, "TEXT")

    @property
    def allowed(self) -> str:
        """Allowed values in words; empty if any of the right type will do."""
        if self.info.choices:
            return ", ".join(self.info.choices)
        low, high = self.info.minimum, self.info.maximum
        if low is not None and high is not None:
            return f"{low:g} to {high:g}"
        if low is not None:
            return f"{low:g} or more"
        return "" if high is None else f"at most {high:g}"


def command_option(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    metavar: str = "",
    minimum: float | None = None,
) -> Any:
    """A field of a command's own options class."""
    info = OptionInfo(help, choices, metavar, minimum)
    return field(default=default, metadata={"option": info})


def settings_of(group: str, options: type, *, without: Sequence[str] = ()) -> list[Setting]:
    """The settings of an options class, in the order of its fields."""
    hints = get_type_hints(options)
    told = attribute_docs(options)
    found: list[Setting] = []
    for each in fields(options):
        if each.name in without:
            continue
        info = each.metadata.get("option") or OptionInfo(told[each.name])
        kind, shape, value_kind = _kind_of(hints[each.name])
        default = each.default_factory() if each.default is MISSING else each.default  # type: ignore[misc]
        found.append(
            Setting(
                group=group,
                name=each.name,
                kind=kind,
                shape=shape,
                value_kind=value_kind,
                default=default,
                info=info,
            )
        )
    return found


def attribute_docs(options: type) -> dict[str, str]:
    """What a class's docstring says of each of its attributes."""
    _, _, text = (options.__doc__ or "").partition("Attributes:\n")
    text, _, _ = text.partition("\n\n")
    told: dict[str, str] = {}
    for match in re.finditer(r"^ {8}(\w+): (.+(?:\n {12}.+)*)", text, re.MULTILINE):
        words = " ".join(match[2].split())
        told[match[1]] = words[0].upper() + words[1:]
    return told


def title_of(options: type) -> str:
    """The heading above an options class's flags: the first line of its docstring."""
    return (options.__doc__ or "").strip().splitlines()[0].rstrip(".")


def from_text(setting: Setting, texts: Sequence[str]) -> object:
    """The value of a setting from what was typed.

    Raises:
        ConfigError: a value has the wrong type or lies outside of what is allowed.
    """
    if setting.shape is Shape.SINGLE:
        return _one(setting, texts[-1])
    if setting.shape is Shape.MANY:
        parts = [part for text in texts for part in _split(setting, text)]
        return tuple(_one(setting, part) for part in parts)
    return dict(_pair(setting, text) for text in texts)


def from_file(setting: Setting, value: object) -> object:
    """The value of a setting from a configuration file.

    Raises:
        ConfigError: the value has the wrong type or lies outside of what is allowed.
    """
    if value is None:
        if setting.default is None:
            return None
        raise ConfigError(f"{setting.name} has no value.", remedy=_remedy(setting))
    if setting.shape is Shape.MANY:
        items: Iterable[object] = value if isinstance(value, list) else [value]
        return tuple(_one(setting, item) for item in items)
    if isinstance(value, list | dict):
        raise ConfigError(f"{setting.name} is a list or mapping.", remedy="Give one value.")
    return _one(setting, value)


def suggestion(word: str, known: Iterable[str]) -> str:
    """'Did you mean ...?' with the closest known word; empty if none is close.

    A word that begins as this one does is closer than any that is merely spelled alike.
    """
    words = list(known)
    begun = [each for each in words if word.strip("-/") and each.startswith(word)]
    close = begun[:1] or difflib.get_close_matches(word, words, n=1)
    return f"Did you mean '{close[0]}'?" if close else ""


def shown_default(setting: Setting) -> str:
    """The default in words; empty if there is nothing to show."""
    value = setting.default
    if value is None or isinstance(value, tuple | Mapping):
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _kind_of(hint: Any) -> tuple[type, Shape, type]:
    origin = get_origin(hint)
    if origin is tuple:
        return get_args(hint)[0], Shape.MANY, str
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        key, value = get_args(hint)
        return key, Shape.PAIRS, value
    if origin is not None:
        (kind,) = [each for each in get_args(hint) if each is not type(None)]
        return kind, Shape.SINGLE, str
    return hint, Shape.SINGLE, str


def _split(setting: Setting, text: str) -> list[str]:
    # A stop string may hold a comma, so only names are split.
    if setting.name in ("plugins", "no_plugin"):
        return [part.strip() for part in text.split(",") if part.strip()]
    return [text]


def _pair(setting: Setting, text: str) -> tuple[object, object]:
    key, sign, value = text.partition("=")
    if not sign:
        raise ConfigError(
            f"{setting.flag} is '{text}'; allowed: {setting.metavar}.",
            remedy=f"Write it like {setting.flag} 50=-1.5.",
        )
    return _number(setting, setting.kind, key), _number(setting, setting.value_kind, value)


def _one(setting: Setting, raw: object) -> object:
    value = raw
    if setting.kind is bool:
        if not isinstance(raw, bool):
            raise ConfigError(f"{setting.name} is {raw!r}; allowed: true, false.")
        return raw
    if setting.kind in (int, float):
        value = _number(setting, setting.kind, raw)
    elif not isinstance(raw, str):
        # YAML reads an unquoted 123 as a number where a name was meant.
        value = str(raw)
    _check(setting, value)
    return value


def _number(setting: Setting, kind: type, raw: Any) -> Any:
    word = "whole number" if kind is int else "number"
    try:
        if isinstance(raw, bool) or (kind is int and isinstance(raw, float)):
            raise ValueError
        return kind(raw)
    except (ValueError, TypeError):
        raise ConfigError(
            f"{setting.flag} is '{raw}'; allowed: a {word}"
            + (f", {setting.allowed}." if setting.allowed else "."),
            remedy=_remedy(setting),
        ) from None


def _check(setting: Setting, value: Any) -> None:
    info = setting.info
    if info.choices and value not in info.choices:
        raise ConfigError(
            f"{setting.flag} is '{value}'; allowed: {setting.allowed}.",
            remedy=suggestion(str(value), info.choices) or _remedy(setting),
        )
    # Written so that NaN, which compares false everywhere, fails.
    is_low = info.minimum is not None and not value >= info.minimum
    is_high = info.maximum is not None and not value <= info.maximum
    if is_low or is_high:
        raise ConfigError(
            f"{setting.flag} is {value}; allowed: {setting.allowed}.", remedy=_remedy(setting)
        )


def _remedy(setting: Setting) -> str:
    default = shown_default(setting)
    return f"Leave it out to get {default}." if default else f"See the help of {setting.flag}."
