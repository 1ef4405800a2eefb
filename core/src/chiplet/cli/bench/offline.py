"""Offline: the engine in this process, and the rival beside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from chiplet.cli.bench.rival import TransformersRival, load_transformers
from chiplet.cli.settings import command_option
from chiplet.config import EngineConfig
from chiplet.formats.catalogue import resolve_model

if TYPE_CHECKING:
    from chiplet.llm import LLM


@dataclass(frozen=True, slots=True, kw_only=True)
class RivalOptions:
    """Comparison: the same work by another engine, in the same run."""

    against: str | None = command_option(
        None, "Also run this engine on the same model.", choices=("transformers",)
    )


@dataclass(frozen=True, slots=True)
class Contest:
    """The engine, and the rival if one was asked for."""

    llm: LLM
    rival: TransformersRival | None
    workload: dict[str, float | int | str]


@contextmanager
def contest(config: EngineConfig, options: RivalOptions) -> Generator[Contest]:
    """Both contestants with the same model in the same type, closed at the end.

    Raises:
        ConfigError: the engine cannot start, or the rival is missing.
    """
    from chiplet.llm import LLM

    with LLM(config) as llm:
        facts = llm.facts
        workload: dict[str, float | int | str] = {
            "model": facts.model_name,
            "device": facts.device,
            "dtype": facts.dtype,
        }
        rival = None
        if options.against is not None:
            path = resolve_model(config.model.model)
            rival = load_transformers(Path(path), facts.dtype, "cpu")
        yield Contest(llm, rival, workload)


def seconds(work: Callable[[], object]) -> float:
    """Wall time of a call."""
    start_s = time.perf_counter()
    work()
    return time.perf_counter() - start_s


def middle(values: list[float], digits: int = 1) -> float:
    """The median, rounded."""
    return round(median(values), digits)
