"""The catalogue of models by name, and how a name becomes a path.

No tensor library.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import platformdirs

from chiplet.errors import ModelError
from chiplet.formats.hub import fetch_from_hub
from chiplet.formats.progress_line import showing_progress
from chiplet.formats.wheel_member import WheelMember, fetch_wheel_member, has_sha256

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SHAPE_NAME = re.compile(r"[a-z0-9][a-z0-9.-]*")
_SHAPES = Path(__file__).parent / "shapes"
_WEIGHT_SUFFIXES = (".gguf", ".safetensors", ".bin", ".json")


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueEntry:
    """A model that can be fetched by name.

    Attributes:
        aliases: other names of it.
        file_name: its file in the cache.
        source: where the file comes from.
    """

    name: str
    description: str
    license: str
    aliases: tuple[str, ...]
    file_name: str
    source: WheelMember

    @property
    def path(self) -> Path:
        """Where its file is kept, there or not."""
        return cache_folder() / self.name / self.file_name

    @property
    def size_bytes(self) -> int:
        """Length of its file."""
        return self.source.size_bytes

    @property
    def is_cached(self) -> bool:
        """Its file is in the cache and has the right length."""
        return self.path.is_file() and self.path.stat().st_size == self.size_bytes

    def cached_path(self) -> Path | None:
        """Its file in the cache, if it is there."""
        return self.path if self.is_cached else None


def find_shape(name: str) -> Path | None:
    """The config.json of a well-known model of which only the sizes are here, for measuring."""
    path = _SHAPES / f"{name.lower()}.json"
    return path if _SHAPE_NAME.fullmatch(name.lower()) and path.is_file() else None


def shape_names() -> list[str]:
    """Names that `find_shape` knows."""
    return sorted(path.stem for path in _SHAPES.glob("*.json"))


def cache_folder() -> Path:
    """The folder in the user's cache where fetched models are kept."""
    return platformdirs.user_cache_path("chiplet") / "models"


@cache
def catalogue() -> tuple[CatalogueEntry, ...]:
    """All models that can be fetched by name."""
    tables = tomllib.loads(files("chiplet.formats").joinpath("catalogue.toml").read_text("utf-8"))
    return tuple(
        CatalogueEntry(
            name=name,
            description=table["description"],
            license=table["license"],
            aliases=tuple(table["aliases"]),
            file_name=table["file_name"],
            source=WheelMember(
                distribution=table["distribution"],
                version=table["version"],
                member=table["member"],
                size_bytes=table["size_bytes"],
                sha256=table["sha256"],
            ),
        )
        for name, table in tables.items()
    )


def find_entry(name: str) -> CatalogueEntry | None:
    """The model of a name or alias, upper and lower case alike."""
    wanted = name.lower()
    return next(
        (entry for entry in catalogue() if wanted in (entry.name, *entry.aliases)),
        None,
    )


def pull(name: str, *, progress: bool = True) -> Path:
    """The file of a catalogue model, fetched unless it is there and sound.

    Blocks while fetching; may be interrupted and repeated.

    Args:
        name: a catalogue name or alias.
        progress: show on stderr how far it is.

    Raises:
        ModelError: the name is not in the catalogue.
        ConfigError: the file cannot be fetched.
    """
    entry = find_entry(name)
    if entry is None:
        raise _unknown(name)
    if not (entry.is_cached and has_sha256(entry.path, entry.source.sha256)):
        with showing_progress(entry.file_name, is_shown=progress) as report:
            fetch_wheel_member(entry.source, entry.path, report)
    return entry.path


def is_hub_name(name: str) -> bool:
    """Whether a name is one of the hub's, like 'owner/name', and no path."""
    return _HUB_NAME.fullmatch(name) is not None and not _is_path(name)


def resolve_model(name: str, *, progress: bool = True) -> Path:
    """The path of a model named by path, catalogue name, shape or hub name, fetched if needed.

    Raises:
        ModelError: there is no such model, or the hub cannot be reached.
        ConfigError: a catalogue model cannot be fetched.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    entry = find_entry(name)
    if entry is not None:
        return entry.cached_path() or pull(name, progress=progress)
    shape = find_shape(name)
    if shape is not None:
        return shape
    if _is_path(name):
        raise ModelError(f"There is no file or folder {name}.", remedy="Check the path.")
    if is_hub_name(name):
        return fetch_from_hub(name)
    raise _unknown(name)


def _is_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.endswith(_WEIGHT_SUFFIXES)


def _unknown(name: str) -> ModelError:
    names = [each for entry in catalogue() for each in (entry.name, *entry.aliases)]
    names += shape_names()
    near = difflib.get_close_matches(name.lower(), names, n=1)
    guess = f"Did you mean {near[0]!r}? " if near else ""
    known = ", ".join(entry.name for entry in catalogue())
    return ModelError(
        f"There is no model {name!r}. {guess}In the catalogue: {known}. Shapes for "
        f"--load-format dummy: {', '.join(shape_names())}.",
        remedy="Name one of these, a folder, a GGUF file, or a hub model as 'owner/name'.",
    )
