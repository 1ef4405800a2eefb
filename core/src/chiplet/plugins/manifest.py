"""Manifest: what a plugin says of itself before any of its code runs.

A file `chiplet_plugin.toml` in the plugin's package:

    name = "acme"
    kind = "platform"                 # or "provider"
    device_types = ["acme"]           # what `--device` takes; of a provider, what it serves
    requires = ["acme-driver>=2"]     # optional: distributions and their versions

    [options]                         # optional: what `--plugin-option` may set, and its meaning
    memory_gib = "Memory that kernels may use for workspaces."

    [api]                             # a range for each interface that it uses
    platform = ">=1.0,<2"
    attention = ">=1.0,<2"
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet

from chiplet.api import INTERFACE_VERSIONS

MANIFEST_NAME = "chiplet_plugin.toml"


_INTERFACES_OF_HOOKS = {
    "probe": "platform",
    "emulated": "platform",
    "quantization_formats": "quantization",
    "stored_formats": "quantization",
}
"""Where a hook has not the name of its interface."""


class ManifestError(Exception):
    """A manifest is missing, malformed or asks for what this core does not have."""


class PluginKind(StrEnum):
    """What a plugin brings."""

    PLATFORM = "platform"
    PROVIDER = "provider"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A plugin's manifest.

    Attributes:
        name: for people; the distribution's name is what flags take.
        api: version range by interface, like `{"attention": ">=1.0,<2"}`.
        device_types: the words for `--device` that its probe may answer with; of a provider, the
            only ones that it is asked about, all if there are none.
        requires: distributions with their version ranges.
        options: what `--plugin-option` may set: keys, and a sentence for people on each.
    """

    name: str
    kind: PluginKind
    api: Mapping[str, str]
    device_types: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict[str, str])


def find_manifest(module: str) -> Path:
    """Path of the manifest beside an entry-point module, found without importing anything.

    Raises:
        ManifestError: there is no such package or no such file.
    """
    # Only the top package is looked up: asking for a submodule's spec would import its parents.
    top, *rest = module.split(".")
    spec = find_spec(top)
    if spec is None:
        raise ManifestError(f"package '{top}' of entry point '{module}' cannot be found")
    folders = [Path(place, *rest[:-1]) for place in spec.submodule_search_locations or ()]
    for folder in folders:
        if (folder / MANIFEST_NAME).is_file():
            return folder / MANIFEST_NAME
    places = ", ".join(map(str, folders)) or f"'{top}', which is not a package"
    raise ManifestError(f"no {MANIFEST_NAME} in {places}")


def read_manifest(path: Path) -> Manifest:
    """The manifest in a file.

    Raises:
        ManifestError: the file cannot be read, or is not a manifest.
    """
    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ManifestError(f"{path} cannot be read: {error}") from error
    return parse_manifest(fields)


def parse_manifest(fields: Mapping[str, Any]) -> Manifest:
    """The manifest in a table.

    Raises:
        ManifestError: a field is missing, unknown or of the wrong form.
    """
    known = {"name", "kind", "api", "device_types", "requires", "options"}
    unknown = sorted(fields.keys() - known)
    if unknown:
        raise ManifestError(f"unknown field '{unknown[0]}'; known: {', '.join(sorted(known))}")
    missing = sorted({"name", "kind", "api"} - fields.keys())
    if missing:
        raise ManifestError(f"field '{missing[0]}' is missing")
    manifest = Manifest(
        name=_text(fields, "name"),
        kind=_kind(fields["kind"]),
        api=_api(fields["api"]),
        device_types=_texts(fields, "device_types"),
        requires=_texts(fields, "requires"),
        options=_options(fields.get("options", {})),
    )
    if manifest.kind is PluginKind.PLATFORM and not manifest.device_types:
        raise ManifestError("kind 'platform' needs 'device_types'")
    for requirement in manifest.requires:
        _requirement(requirement)
    return manifest


def serves(manifest: Manifest, device_type: str) -> bool:
    """Whether a plugin is asked for what it offers on a kind of device.

    A platform is asked about every kind: it may have kernels for another's devices too.
    """
    is_bound = manifest.kind is PluginKind.PROVIDER and bool(manifest.device_types)
    return not is_bound or device_type in manifest.device_types


def check_api(manifest: Manifest) -> None:
    """Compare the ranges that a plugin asks for with the interfaces of this core.

    Raises:
        ManifestError: an interface is unknown here or its version is out of range.
    """
    for interface, wanted in manifest.api.items():
        if interface not in INTERFACE_VERSIONS:
            known = ", ".join(sorted(INTERFACE_VERSIONS))
            raise ManifestError(f"interface '{interface}' is unknown to this core; known: {known}")
        major, minor = INTERFACE_VERSIONS[interface]
        if not SpecifierSet(wanted).contains(f"{major}.{minor}"):
            raise ManifestError(_out_of_range(interface, wanted, (major, minor)))


def check_hooks(manifest: Manifest, hooks: Collection[str]) -> None:
    """Compare the hooks that a plugin implements with the interfaces that its manifest names.

    Raises:
        ManifestError: a hook that its kind or its options need is missing, or a hook belongs to an
            interface that is not named: its version would go unchecked.
    """
    if manifest.options and "configure" not in hooks:
        raise ManifestError("[options] needs hook 'configure', which is not implemented")
    needed = ("probe", "platform") if manifest.kind is PluginKind.PLATFORM else ()
    for hook in needed:
        if hook not in hooks:
            raise ManifestError(f"kind 'platform' needs hook '{hook}', which is not implemented")
    for hook in hooks:
        interface = _INTERFACES_OF_HOOKS.get(hook, hook)
        if interface in INTERFACE_VERSIONS and interface not in manifest.api:
            raise ManifestError(
                f"hook '{hook}' belongs to interface {interface}, for which [api] gives no range"
            )


def _out_of_range(interface: str, wanted: str, ours: tuple[int, int]) -> str:
    """Which of the two must be updated; neither, if the range holds no version at all."""
    major, minor = ours
    later = [(major, minor + step) for step in range(1, 200)]
    later += [(major + step, each) for step in range(1, 4) for each in range(20)]
    has = f"this core has {major}.{minor}"
    if any(SpecifierSet(wanted).contains(f"{each}.{step}") for each, step in later):
        return f"needs interface {interface} {wanted}, newer than {has}; update chiplet"
    earlier = [(each, step) for each in range(major + 1) for step in range(200)]
    if any(SpecifierSet(wanted).contains(f"{each}.{step}") for each, step in earlier):
        return f"needs interface {interface} {wanted}, older than {has}; update the plugin"
    return f"needs interface {interface} {wanted}, and {has}"


def check_requires(manifest: Manifest) -> None:
    """Compare required distributions with the installed ones.

    Raises:
        ManifestError: one is missing or its version is out of range.
    """
    for text in manifest.requires:
        requirement = _requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError as error:
            raise ManifestError(f"needs {text}, which is not installed") from error
        if not requirement.specifier.contains(installed, prereleases=True):
            raise ManifestError(f"needs {text}, and {installed} is installed")


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields[name]
    if not isinstance(value, str) or not value:
        raise ManifestError(f"field '{name}' is {value!r}; it must be a non-empty string")
    return value


def _texts(fields: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = fields.get(name, [])
    if not isinstance(value, list) or not all(isinstance(each, str) and each for each in value):
        raise ManifestError(f"field '{name}' is {value!r}; it must be a list of strings")
    return tuple(value)


def _kind(value: object) -> PluginKind:
    if value not in list(PluginKind):
        raise ManifestError(f"field 'kind' is {value!r}; it must be 'platform' or 'provider'")
    return PluginKind(str(value))


def _api(value: object) -> Mapping[str, str]:
    if not isinstance(value, dict) or not value:
        raise ManifestError("table [api] must give a version range for at least one interface")
    ranges: dict[str, str] = {}
    for interface, wanted in value.items():
        try:
            ranges[str(interface)] = str(SpecifierSet(wanted))
        except (InvalidSpecifier, TypeError, AttributeError) as error:
            raise ManifestError(
                f"[api] {interface} is {wanted!r}; it must be a range like '>=1.0,<2'"
            ) from error
    return ranges


def _options(value: object) -> Mapping[str, str]:
    if not isinstance(value, dict):
        raise ManifestError(f"[options] is {value!r}; it must be a table of keys and meanings")
    found = {str(key): meaning for key, meaning in value.items()}
    for key, meaning in found.items():
        if not re.fullmatch(r"[a-z][a-z0-9_]*", key) or not isinstance(meaning, str) or not meaning:
            raise ManifestError(
                f"[options] has {key} = {meaning!r}; it must be a lower-case word and a sentence"
            )
    return found


def normalized(name: str) -> str:
    """A distribution's name as the packaging specification compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _requirement(text: str) -> Requirement:
    try:
        return Requirement(text)
    except InvalidRequirement as error:
        raise ManifestError(f"'requires' has {text!r}, which is no requirement: {error}") from error
