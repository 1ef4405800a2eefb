"""Measured times on disk: one file for each kind of machine, shared by all who run here.

The cache is a convenience: when it cannot be read or written, a warning says so and the start goes
on without it. Files are replaced in one piece, so that a reader never sees half of one.
"""

from __future__ import annotations

import fcntl
import logging
import os
import tempfile
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import platformdirs

from chiplet.plugins.request_key import digest

_log = logging.getLogger(__name__)

FORMAT = 1
"""Of the files; those of another one are replaced."""

MAX_ENTRIES = 4096
"""Entries of a file; the oldest go first. One takes about 100 bytes."""

MAX_FILES = 16
"""Kinds of machines; the file that was written longest ago goes first."""

LOCK_NAME = "lock"
LOCK_LIMIT_S = 0.5
"""How long a start waits for another one that is writing."""

_LOCK_POLL_S = 0.02

Timings = Mapping[int, float]
"""Microseconds by number of tokens."""


class CacheFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of measurements.

    Attributes:
        machine: what was measured on, for people.
        entries: times in microseconds, by key and number of tokens; oldest first.
    """

    format: int
    machine: str
    entries: dict[str, dict[int, float]]


class LockedError(Exception):
    """Another process holds the lock."""


def cache_folder() -> Path:
    """Where measurements are kept in the user's cache."""
    return platformdirs.user_cache_path("chiplet") / "autotune"


class MeasurementCache:
    """Measurements on one kind of machine."""

    def __init__(self, folder: Path, machine: str) -> None:
        """Read what is there.

        Args:
            folder: where files are, or will be.
            machine: all that a time depends on beside the work: device, driver, versions.
        """
        self._folder = folder
        self._machine = machine
        self._path = folder / f"{digest(machine)}.json"
        self._known = self._read()
        self._new: dict[str, dict[int, float]] = {}

    def find(self, key: str) -> Timings | None:
        """What was measured, if it was."""
        return self._new.get(key) or self._known.get(key)

    def put(self, key: str, timings: Timings) -> None:
        """Remember a measurement; `save` writes it."""
        self._new[key] = dict(timings)

    def save(self) -> None:
        """Write what is new, beside what others have written meanwhile; warns if it cannot be."""
        if not self._new:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with locked(self._folder):
                entries = {**self._read(), **self._new}
                kept = dict(list(entries.items())[-MAX_ENTRIES:])
                _replace(self._path, msgspec.json.encode(CacheFile(FORMAT, self._machine, kept)))
                _drop_oldest(self._folder)
        except LockedError:
            _log.warning(
                "Measurements are not kept: another process holds %s.", self._folder / LOCK_NAME
            )
        except OSError as error:
            _log.warning("Measurements are not kept in %s: %s", self._folder, error)
        self._known |= self._new
        self._new = {}

    def _read(self) -> dict[str, dict[int, float]]:
        try:
            content = msgspec.json.decode(self._path.read_bytes(), type=CacheFile)
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.DecodeError) as error:
            _log.warning("Measurements in %s are not used: %s", self._path, error)
            return {}
        return content.entries if content.format == FORMAT else {}


@contextmanager
def locked(folder: Path, *, limit_s: float = LOCK_LIMIT_S) -> Generator[None]:
    """Hold the folder's lock.

    Raises:
        LockedError: another process still has it after the time limit.
        OSError: there is no folder, or it may not be written to.
    """
    file = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)
    end_s = time.monotonic() + limit_s
    try:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() >= end_s:
                    raise LockedError from error
                time.sleep(_LOCK_POLL_S)
            else:
                break
        yield
    finally:
        os.close(file)


def _replace(path: Path, data: bytes) -> None:
    number, name = tempfile.mkstemp(prefix=".new-", dir=path.parent)
    try:
        with os.fdopen(number, "wb") as file:
            file.write(data)
        Path(name).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise


def _drop_oldest(folder: Path) -> None:
    files = sorted(folder.glob("*.json"), key=lambda each: each.stat().st_mtime)
    for each in files[:-MAX_FILES]:
        each.unlink(missing_ok=True)
