"""The machine without its accelerators: interpreter, threads, files, caches."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import platformdirs
from packaging.version import Version

from chiplet import __version__
from chiplet.api import Check
from chiplet.cli.doctor.report import fault, ok, warning
from chiplet.ipc.sockets import MAX_SOCKET_PATH_BYTES
from chiplet.plugins.autotune.cache import LOCK_NAME, LockedError, locked
from chiplet.plugins.host import host_facts

OLDEST_TORCH = Version("2.8")
LITTLE_DISK_BYTES = 1 << 30
NO_DISK_BYTES = 64 << 20
FEW_OPEN_FILES = 1024
"""A server holds one for each connection."""

_LONGEST_SOCKET_NAME = "chiplet-xxxxxxxx/detokenizer.sock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """Facts about the machine.

    Attributes:
        torch: version, or None if it is not installed.
        torch_failure: why it cannot be imported, or empty.
        num_cores: that this process may use.
        num_threads: that torch would use for one operation.
        temp_folder: where sockets go.
        max_open_files: of this process.
        cache_folder: of the user, for models and measurements.
        cache_free_bytes: of its disk.
    """

    python: str
    torch: str | None
    torch_failure: str
    num_cores: int
    num_threads: int
    temp_folder: Path
    max_open_files: int
    cache_folder: Path
    cache_free_bytes: int


def read_host() -> Host:
    """Facts about this machine."""
    folder = platformdirs.user_cache_path("chiplet")
    torch, failure, num_threads = _find_torch()
    return Host(
        python=f"{platform.python_version()} at {sys.executable}",
        torch=torch,
        torch_failure=failure,
        num_cores=host_facts().num_cores,
        num_threads=num_threads,
        temp_folder=Path(tempfile.gettempdir()),
        max_open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        cache_folder=folder,
        cache_free_bytes=shutil.disk_usage(_existing(folder)).free,
    )


def _find_torch() -> tuple[str | None, str, int]:
    """Version, why it cannot be imported, and its number of threads."""
    try:
        installed = version("torch")
    except PackageNotFoundError:
        return None, "", 0
    try:
        return installed, "", import_module("torch").get_num_threads()
    # A library that does not fit this system is an OSError, and worse is possible.
    except Exception as error:
        return installed, f"{type(error).__name__}: {error}", 0


def check_host(host: Host) -> Iterator[Check]:
    """Versions, threads, files, sockets and caches."""
    yield ok("chiplet", __version__)
    yield ok("python", host.python)
    yield _torch(host)
    yield _threads(host)
    yield _open_files(host)
    yield _sockets(host)
    yield _disk(host)
    yield _cache(host)
    yield _measurements(host)


def _torch(host: Host) -> Check:
    remedy = f"pip install 'torch>={OLDEST_TORCH}'"
    if host.torch is None:
        return fault("torch", "not installed", remedy)
    if Version(host.torch) < OLDEST_TORCH:
        return fault("torch", f"{host.torch} is older than {OLDEST_TORCH}", remedy)
    if host.torch_failure:
        detail = f"{host.torch} cannot be imported: {host.torch_failure}"
        return fault("torch", detail, "pip install --force-reinstall torch")
    return ok("torch", host.torch)


def _threads(host: Host) -> Check:
    detail = f"{host.num_threads} for {host.num_cores} cores"
    if host.num_threads > host.num_cores:
        return warning(
            "threads",
            f"{detail}; threads that wait for one another cost more than they bring",
            f"Unset OMP_NUM_THREADS, or set it to {host.num_cores} or less.",
        )
    return ok("threads", detail)


def _open_files(host: Host) -> Check:
    detail = f"at most {host.max_open_files}"
    if 0 <= host.max_open_files < FEW_OPEN_FILES:
        return warning("open files", detail, f"Raise it: ulimit -n {FEW_OPEN_FILES} or more.")
    return ok("open files", detail)


def _sockets(host: Host) -> Check:
    path = host.temp_folder / _LONGEST_SOCKET_NAME
    num_bytes = len(os.fsencode(path))
    if num_bytes > MAX_SOCKET_PATH_BYTES:
        return fault(
            "sockets",
            f"names in {host.temp_folder} have {num_bytes} bytes, allowed: {MAX_SOCKET_PATH_BYTES}",
            "Set TMPDIR to a folder with a shorter name, like /tmp.",
        )
    trouble = _trouble_writing(host.temp_folder)
    if trouble:
        return fault("sockets", trouble, "Set TMPDIR to a folder that may be written to.")
    return ok("sockets", f"in {host.temp_folder}")


def _disk(host: Host) -> Check:
    detail = f"{host.cache_free_bytes / 2**30:.1f} GiB free at {host.cache_folder}"
    if host.cache_free_bytes < LITTLE_DISK_BYTES:
        report = fault if host.cache_free_bytes < NO_DISK_BYTES else warning
        return report("disk", detail, "Free some disk space, or set XDG_CACHE_HOME elsewhere.")
    return ok("disk", detail)


def _cache(host: Host) -> Check:
    trouble = _trouble_writing(host.cache_folder)
    if trouble:
        return warning(
            "cache folder",
            f"{trouble}; models cannot be fetched and measurements not kept",
            "Make it writable, or set XDG_CACHE_HOME to a folder that is.",
        )
    return ok("cache folder", str(host.cache_folder))


def _measurements(host: Host) -> Check:
    folder = host.cache_folder / "autotune"
    if not (folder / LOCK_NAME).exists():
        return ok("measurements", "none kept yet")
    try:
        with locked(folder, limit_s=0):
            num_files = len(list(folder.glob("*.json")))
    except LockedError:
        return warning(
            "measurements",
            f"another process holds {folder / LOCK_NAME}",
            "End the process that holds it, if it is not a start under way.",
        )
    except OSError as error:
        return warning("measurements", str(error), f"Remove {folder}.")
    return ok("measurements", f"of {num_files} kinds of devices in {folder}")


def _existing(folder: Path) -> Path:
    return next(each for each in (folder, *folder.parents) if each.exists())


def _trouble_writing(folder: Path) -> str:
    """Why nothing can be written to a folder, which need not be there; empty if it can."""
    try:
        with tempfile.TemporaryFile(dir=_existing(folder)):
            return ""
    except OSError as error:
        return f"{folder} cannot be written to ({error.strerror or error})"
