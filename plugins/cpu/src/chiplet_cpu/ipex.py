"""Intel Extension for PyTorch: whether it can be called here, found out without importing it.

Its last version is 2.8.0. Each version goes with one of torch: on another its import fails in a way
of its own (`os.exit`, which Python does not have), so that versions are compared before.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

DISTRIBUTION: Final = "intel-extension-for-pytorch"

RETIRED: Final = "its maintainers ended it with 2.8.0"

_MODULE = "intel_extension_for_pytorch"
_REMEDY = f"pip uninstall {DISTRIBUTION}, or use it with the torch that it goes with."


def installed() -> str:
    """Its version; empty if it is not installed."""
    return _version(DISTRIBUTION)


def refusal(ipex: str, torch: str) -> str:
    """Why these versions cannot be used together, for people; empty if they can."""
    if not ipex:
        return f"{DISTRIBUTION} is not installed"
    wanted, found = _series(ipex), _series(torch)
    if wanted != found:
        return (
            f"{DISTRIBUTION} {ipex} goes with torch {wanted}, torch {torch or 'none'} is installed"
        )
    return ""


def explanation() -> str:
    """Why it cannot be called here, for people; empty if it can."""
    return refusal(installed(), _version("torch"))


def remedy() -> str:
    """What to do about versions that do not go together."""
    return _REMEDY


def operations() -> Any:
    """Its operations, `torch.ops.torch_ipex`; imports it, which takes seconds.

    Raises:
        ImportError: it cannot be loaded.
    """
    try:
        importlib.import_module(_MODULE)
    except SystemExit as error:  # how it says that the processor lacks AVX2
        raise ImportError(str(error)) from error
    import torch  # noqa: PLC0415

    return torch.ops.torch_ipex


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


def _series(text: str) -> str:
    """'2.8' of '2.8.0+cpu'."""
    return ".".join(text.split("+")[0].split(".")[:2])
