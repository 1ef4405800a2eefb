"""Makes the peers' virtual environments and the model folder; can be run again.

python benchmarks/peers/environments.py [PEER ...] [--cache FOLDER] [--gguf FILE]

Everything lies below the cache folder: one virtual environment each, several GB altogether. What
is there already and was made from the same list is left alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ADAPTERS = HERE / "adapters"
DEFAULT_CACHE = Path.home() / ".cache" / "chiplet" / "peers"
CONVERTER = "transformers"
"""The environment that can read a GGUF file and write a folder."""


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment and how it is made.

    Attributes:
        steps: arguments of one `pip install` after another.
        own: the interpreter that runs this; nothing is made.
    """

    name: str
    steps: tuple[tuple[str, ...], ...] = ()
    own: bool = False

    @property
    def digest(self) -> str:
        """Changes when the steps or the interpreter do."""
        text = json.dumps([self.steps, sys.version_info[:2]])
        return hashlib.sha256(text.encode()).hexdigest()


CODINGS = ("file", "int8", "bfloat16")
"""Of weights while they are multiplied: 4 bits as in the file, a byte, or bfloat16."""

_CODING_OF = {"file": "file", "folder": "bfloat16"}


@dataclass(frozen=True, slots=True)
class PeerEntry:
    """One entry of peers.toml; see there."""

    name: str
    adapter: str
    environment: str
    model: str
    coding: str
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class Registry:
    """All entries of peers.toml."""

    environments: Mapping[str, Environment]
    peers: Mapping[str, PeerEntry]


def read_registry(file: Path = HERE / "peers.toml") -> Registry:
    """The entries of a peers.toml.

    Raises:
        ValueError: an entry names an environment or model that there is not.
    """
    table = tomllib.loads(file.read_text("utf-8"))
    environments = {
        name: Environment(
            name, tuple(tuple(step) for step in entry.get("steps", ())), own=entry.get("own", False)
        )
        for name, entry in table["environments"].items()
    }
    peers = {
        name: PeerEntry(name=name, **{"coding": _CODING_OF.get(entry["model"], ""), **entry})
        for name, entry in table["peers"].items()
    }
    for peer in peers.values():
        if peer.environment not in environments:
            raise ValueError(
                f"peer '{peer.name}' wants environment '{peer.environment}'; "
                f"known: {', '.join(environments)}"
            )
        if peer.model not in ("file", "folder"):
            raise ValueError(
                f"peer '{peer.name}' wants model '{peer.model}'; allowed: file, folder"
            )
        if peer.coding not in CODINGS:
            raise ValueError(
                f"peer '{peer.name}' computes with coding '{peer.coding}'; "
                f"allowed: {', '.join(CODINGS)}"
            )
    return Registry(environments, peers)


def interpreter(environment: Environment, cache: Path) -> Path | None:
    """The Python of an environment; None if it has not been made, or from another list."""
    if environment.own:
        return Path(sys.executable)
    folder = cache / environment.name
    stamp = folder / "made-from"
    if not stamp.is_file() or stamp.read_text("utf-8") != environment.digest:
        return None
    return folder / "bin" / "python"


def make(environment: Environment, cache: Path) -> None:
    """Make an environment, from nothing if need be; pip shows its progress.

    Raises:
        subprocess.CalledProcessError: a step failed; what is made so far is used next time.
    """
    if interpreter(environment, cache) is not None:
        print(f"==> {environment.name}: made already", flush=True)
        return
    folder = cache / environment.name
    if not (folder / "bin" / "python").exists():
        print(f"==> {environment.name}: virtual environment in {folder}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    for number, step in enumerate(environment.steps, start=1):
        print(f"==> {environment.name}: step {number} of {len(environment.steps)}", flush=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", *step], check=True)
    (folder / "made-from").write_text(environment.digest, "utf-8")


def model_folder(file: Path, cache: Path) -> Path | None:
    """The folder made from a GGUF file; None if it has not been made."""
    folder = cache / "models" / file.stem
    return folder if (folder / "config.json").is_file() else None


def make_model_folder(file: Path, registry: Registry, cache: Path) -> Path:
    """The folder made from a GGUF file, made now if need be.

    Raises:
        subprocess.CalledProcessError: it could not be converted.
    """
    made = model_folder(file, cache)
    if made is not None:
        return made
    converter = registry.environments[CONVERTER]
    make(converter, cache)
    python = interpreter(converter, cache)
    folder = cache / "models" / file.stem
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    print(f"==> {file.name} as a folder in bfloat16: {folder}", flush=True)
    subprocess.run(
        [str(python), str(ADAPTERS / "convert_to_folder.py"), str(file), str(partial)], check=True
    )
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


def make_all(names: Iterable[str], registry: Registry, cache: Path) -> list[str]:
    """Make the environments of peers; the names of those that failed."""
    failed: list[str] = []
    wanted = dict.fromkeys(registry.peers[name].environment for name in names)
    for each in wanted:
        try:
            make(registry.environments[each], cache)
        except subprocess.CalledProcessError as error:
            print(f"==> {each}: FAILED ({error})", flush=True)
            failed.append(each)
    return failed


def main() -> int:
    registry = read_registry()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peers", nargs="*", help="names in peers.toml; all if not given")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE)
    parser.add_argument("--gguf", type=Path, help="also make the folder of this GGUF file")
    options = parser.parse_args()
    unknown = set(options.peers) - set(registry.peers)
    if unknown:
        parser.error(f"unknown peers {sorted(unknown)}; known: {', '.join(registry.peers)}")
    options.cache.mkdir(parents=True, exist_ok=True)
    failed = make_all(options.peers or registry.peers, registry, options.cache)
    if options.gguf is not None and CONVERTER not in failed:
        make_model_folder(options.gguf, registry, options.cache)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
