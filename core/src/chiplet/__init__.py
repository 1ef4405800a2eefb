"""Chiplet serves language models on any kind of hardware."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from chiplet.sampling_params import SamplingParams

if TYPE_CHECKING:
    from chiplet.llm import LLM

try:
    __version__ = version("chiplet")
except PackageNotFoundError:  # running from a source tree that is not installed
    __version__ = "0+unknown"

__all__ = ["LLM", "SamplingParams", "__version__"]


def __getattr__(name: str) -> Any:
    # LLM is looked up late, so that importing chiplet imports no tensor library.
    if name == "LLM":
        from chiplet.llm import LLM

        return LLM
    raise AttributeError(f"module 'chiplet' has no attribute {name!r}")
