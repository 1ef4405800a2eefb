"""`chiplet plugin new`: writes a project that is a working plugin from the first minute."""

from __future__ import annotations

import keyword
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import jinja2

from chiplet.api import INTERFACE_VERSIONS
from chiplet.cli.command import Command, Given, Positional
from chiplet.cli.settings import command_option
from chiplet.errors import ConfigError
from chiplet.version import __version__

KINDS = ("attention", "linear", "ops", "communication", "platform")
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_SUFFIX = ".jinja"


@dataclass(frozen=True, slots=True, kw_only=True)
class NewOptions:
    """Project: what is written, and where."""

    name: str | None = command_option(None, "Name of the distribution.")
    kind: str | None = command_option(None, "What it brings; must be given.", choices=KINDS)
    into: str = command_option(".", "Folder in which the project's folder is made.", metavar="DIR")


def run(given: Given) -> int:
    """Write the project and say how to go on."""
    options = given.options("project", NewOptions())
    name = _checked_name(options.name)
    if options.kind is None:
        raise ConfigError(
            f"There is no --kind; allowed: {', '.join(KINDS)}.",
            remedy=f"For example: chiplet plugin new {name} --kind linear",
        )
    folder = _write(Path(options.into), name, rendered(name, options.kind))
    print(f"Wrote {folder}, a plugin that delegates to the reference. Next:\n")
    for command in (f"cd {folder}", "pip install -e '.[test]'", "pytest"):
        print(f"  {command}")
    return 0


def rendered(name: str, kind: str) -> dict[str, str]:
    """The project's files by path."""
    package = name.replace("-", "_")
    major, minor = INTERFACE_VERSIONS[kind]
    values = {
        "name": name,
        "package": package,
        # The word for flags: `--use linear=acme`, `--device acme`.
        "word": name.removeprefix("chiplet-"),
        "class_name": "".join(map(str.capitalize, name.removeprefix("chiplet-").split("-"))),
        "kind": kind,
        "manifest_kind": "platform" if kind == "platform" else "provider",
        "range": f">={major}.{minor},<{major + 1}",
        "core_range": f">={__version__.rpartition('.')[0]}",
    }
    return dict(_files(kind, values))


def _files(kind: str, values: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("chiplet.cli.plugin"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        # Workflows have braces of their own.
        variable_start_string="<<",
        variable_end_string=">>",
    )
    for template in sorted(environment.list_templates()):
        group, _, path = template.partition("/")
        if group in ("common", kind):
            path = path.removesuffix(_SUFFIX).replace("PACKAGE", values["package"])
            # Tools that gather package data leave out hidden files.
            yield path.replace("DOT", "."), environment.get_template(template).render(values)


def _checked_name(name: str | None) -> str:
    if name is None:
        raise ConfigError(
            "There is no name.", remedy="For example: chiplet plugin new my-accel --kind linear"
        )
    package = name.replace("-", "_")
    if not _NAME.fullmatch(name) or keyword.iskeyword(package):
        raise ConfigError(
            f"'{name}' is no name for a plugin; allowed: lower-case letters, digits and single "
            "hyphens, beginning with a letter, and no word of Python.",
            remedy="For example: my-accel",
        )
    if package in sys.stdlib_module_names or package in ("chiplet", "torch", "reference"):
        raise ConfigError(
            f"'{name}' would hide the module '{package}'.", remedy="Choose another name."
        )
    return name


def _write(into: Path, name: str, files: Mapping[str, str]) -> Path:
    folder = into / name
    try:
        folder.mkdir()
        for path, text in files.items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
    except FileExistsError:
        raise ConfigError(
            f"{folder} is there already, and is left as it is.",
            remedy="Choose another name, or another folder with --into.",
        ) from None
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be written: {error.strerror}.",
            remedy="Give --into a folder that exists and may be written.",
        ) from None
    return folder


COMMAND = Command(
    name="plugin new",
    summary="Write a project whose plugin delegates to the reference and passes conformance.",
    run=run,
    groups={"project": NewOptions},
    positional=Positional(name="name", help="Name of the distribution.", sets="project.name"),
    without=frozenset({"project.name"}),
    takes_config_file=False,
)
