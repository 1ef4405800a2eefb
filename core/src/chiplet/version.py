"""The installed version, below everything that tells it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("chiplet")
except PackageNotFoundError:  # running from a source tree that is not installed
    __version__ = "0+unknown"
