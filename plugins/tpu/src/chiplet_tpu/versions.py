"""Which compilers are installed, known without importing them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

JAX_LIBRARIES = ("jax", "torchax")
"""What the compiler `jax` needs, beside libtpu on a chip."""


def installed(distribution: str) -> str | None:
    """Version of a distribution, None if it is not there."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def missing(*distributions: str) -> list[str]:
    """Those that are not installed."""
    return [each for each in distributions if installed(each) is None]
