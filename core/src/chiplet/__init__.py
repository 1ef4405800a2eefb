"""Chiplet serves language models on any kind of hardware."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chiplet.sampling_params import SamplingParams
from chiplet.version import __version__

if TYPE_CHECKING:
    from chiplet.llm import LLM

__all__ = ["LLM", "SamplingParams", "__version__"]


def __getattr__(name: str) -> Any:
    # LLM is looked up late, so that importing chiplet imports no tensor library.
    if name == "LLM":
        from chiplet.llm import LLM

        return LLM
    raise AttributeError(f"module 'chiplet' has no attribute {name!r}")
