"""Every case of whole models: an engine with one provider pinned, against the reference alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from chiplet.api import Dtype, Execution
from chiplet.config import DeviceOptions, EngineConfig
from chiplet.plugins import choose_device, discover
from chiplet.sampling_params import SamplingParams
from chiplet.scheduler.stats import SchedulerStats
from chiplet.testing.conformance.case import Case, Refused, Skipped, Subject
from chiplet.testing.conformance.engines import Answer, EngineMaker, serve
from chiplet.testing.conformance.tiny_models import (
    CONTEXT_LENGTH,
    KINDS,
    OF_EXPERTS,
    VOCAB_SIZE,
    write_checkpoint,
)
from chiplet.testing.conformance.tolerance import EPSILON, TORCH_DTYPES, assert_close

_FAMILIES = ("attention", "linear", "moe", "ops")
_QUICK_KINDS = ("llama with biases", "qwen3 of experts")

_TOLERANCE = 2e-3
"""Of log-probabilities in float32, after all layers."""

_NUM_ANSWERED = 12
_UNTIL_TIGHT = 100
"""Tokens of an answer beyond what the scheduler leaves room for, so that some must give way."""

_PREFIX = tuple(range(2, 26))


@dataclass(frozen=True, slots=True)
class Scenario:
    """How the work is cut up.

    Attributes:
        options: of the engine.
        waves: prompts; a wave begins when the one before has ended.
        must: what must have happened, by the names of its counts.
        is_prepared: steps are recorded or compiled before the first one; else they run eagerly.
        num_answered: tokens of each answer.
    """

    options: Mapping[str, Any]
    waves: tuple[tuple[tuple[int, ...], ...], ...]
    must: tuple[str, ...] = ()
    is_prepared: bool = False
    num_answered: int = _NUM_ANSWERED

    @property
    def sampling(self) -> SamplingParams:
        """Greedy, with the whole distribution of every token."""
        return SamplingParams(
            temperature=0, max_tokens=self.num_answered, ignore_eos=True, logprobs=VOCAB_SIZE
        )


def _prompts(*lengths: int, prefix: tuple[int, ...] = ()) -> tuple[tuple[int, ...], ...]:
    rng = np.random.default_rng(len(lengths))
    drawn = (rng.integers(2, VOCAB_SIZE, length).tolist() for length in lengths)
    return tuple((*prefix, *each) for each in drawn)


_MIXED = _prompts(33, 1, 7, 20)
_SHARED = _prompts(5, 1, 9, prefix=_PREFIX)
_ROOMY: Mapping[str, Any] = {"page_size": 16, "max_total_tokens": 1024, "max_running_requests": 4}
_TIGHT: Mapping[str, Any] = {"page_size": 16, "max_total_tokens": 160, "max_running_requests": 4}

EVERYTHING = "everything at once"

SCENARIOS: Mapping[str, Scenario] = {
    "whole prompts": Scenario(_ROOMY, (_MIXED,)),
    "chunked prefill": Scenario(_ROOMY | {"chunked_prefill_size": 7}, (_MIXED,)),
    "radix hits": Scenario(_ROOMY, (_SHARED[:1], _SHARED[1:]), ("total_cached_tokens",)),
    "retraction": Scenario(_TIGHT, (_MIXED,), ("total_retractions",), num_answered=_UNTIL_TIGHT),
    "replayed steps": Scenario(_ROOMY, (_MIXED,), is_prepared=True),
    EVERYTHING: Scenario(
        _TIGHT | {"chunked_prefill_size": 7},
        (_SHARED[:1], (*_MIXED, *_SHARED[1:])),
        ("total_cached_tokens", "total_retractions"),
        is_prepared=True,
        num_answered=_UNTIL_TIGHT,
    ),
}
"""By the name in the report."""

_FORCED = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, prompt_logprobs=VOCAB_SIZE)


def model_cases() -> Iterator[Case]:
    """All cases, the same ones in the same order each time."""
    for family, kind in ((family, kind) for family in _FAMILIES for kind in KINDS):
        if family == "moe" and kind not in OF_EXPERTS:
            continue
        wanted = "qwen3 of experts" if family == "moe" else "llama with biases"
        for name, scenario in SCENARIOS.items():
            is_quick = kind == wanted and name == EVERYTHING
            yield _greedy_case(family, kind, name, scenario, is_quick=is_quick)
        if kind not in OF_EXPERTS:  # in narrow types, routers of near ties pick other experts
            for dtype in (Dtype.BFLOAT16, Dtype.FLOAT16):
                yield _forced_case(family, kind, dtype)


def _greedy_case(family: str, kind: str, name: str, scenario: Scenario, *, is_quick: bool) -> Case:
    def check(subject: Subject) -> None:
        engines = _engines(subject)
        platform = subject.context.platform
        if platform.execution is Execution.STEP and name != EVERYTHING:
            raise Skipped("each engine of this device compiles its steps: one case has it all")
        _require_type(engines, Dtype.FLOAT32)
        config = _config(kind, Dtype.FLOAT32, scenario)
        pins = _pins(subject, config)
        answers, stats = serve(*engines.start(config, pins), scenario.waves, scenario.sampling)
        for each in scenario.must:
            assert getattr(stats, each), f"{each} is 0: the case does not test what it is for"
        expected, _ = _expected(kind, name)
        for number, (answer, right) in enumerate(zip(answers, expected, strict=True)):
            _compare(answer, right, f"{subject.name}: {kind}, {name}, request {number}")

    return Case(
        family=family,
        operation="models",
        dtype=str(Dtype.FLOAT32),
        feature=name,
        name=kind,
        is_quick=is_quick,
        check=check,
    )


def _forced_case(family: str, kind: str, dtype: Dtype) -> Case:
    """The same tokens for all: answers of narrow types part at the first near tie."""

    def check(subject: Subject) -> None:
        engines = _engines(subject)
        if subject.context.platform.execution is Execution.STEP:
            raise Skipped("each engine of this device compiles its steps: float32 has it all")
        _require_type(engines, dtype)
        config = _config(kind, dtype, SCENARIOS["chunked prefill"])
        pins = _pins(subject, config)
        answers, _ = serve(*engines.start(config, pins), (_MIXED,), _FORCED)
        plain, exact = _forced(kind, dtype), _forced(kind, Dtype.FLOAT32)
        slack = EPSILON[TORCH_DTYPES[dtype]]
        what = f"{subject.name}: {kind}, log-probabilities of prompts in {dtype}"
        for answer, same, wide in zip(answers, plain, exact, strict=True):
            got = torch.from_numpy(answer.logprobs(VOCAB_SIZE, of_prompt=True))
            assert_close(got, same, wide, what, slack=slack)

    return Case(
        family=family,
        operation="models",
        dtype=str(dtype),
        feature="log-probabilities of prompts",
        name=kind,
        check=check,
    )


def _engines(subject: Subject) -> EngineMaker:
    if subject.engines is None:
        raise Skipped("no engine can be started with it")
    return subject.engines


def _pins(subject: Subject, config: EngineConfig) -> Sequence[str]:
    pins, reasons = _engines(subject).pins(config, subject.family, subject.name)
    if not pins:
        raise Refused("; ".join(reasons) or f"the model has no {subject.family}")
    return pins


def _require_type(engines: EngineMaker, dtype: Dtype) -> None:
    served = engines.chosen.platform.supported_dtypes()
    if dtype not in served:
        raise Skipped(f"the device computes in {', '.join(served)}")


def _config(kind: str, dtype: Dtype, scenario: Scenario) -> EngineConfig:
    return EngineConfig.from_options(
        model=str(_checkpoint(kind)),
        dtype=str(dtype),
        context_length=CONTEXT_LENGTH,
        prepare_first=scenario.is_prepared,
        eager=not scenario.is_prepared,
        self_check=False,
        **scenario.options,
    )


def _compare(got: Answer, expected: Answer, what: str) -> None:
    """Log-probabilities, and tokens up to where the reference itself is of two minds.

    Raises:
        AssertionError: they differ.
    """
    mine, theirs = got.logprobs(VOCAB_SIZE), expected.logprobs(VOCAB_SIZE)
    assert mine.shape == theirs.shape, f"{what}: {len(mine)} tokens, expected {len(theirs)}"
    tokens = zip(got.token_ids, expected.token_ids, strict=True)
    for place, (token, right) in enumerate(tokens):
        difference = float(np.abs(mine[place] - theirs[place]).max())
        assert difference <= _TOLERANCE, (
            f"{what}: log-probabilities of token {place} differ by {difference:.3g}, allowed "
            f"{_TOLERANCE:g}"
        )
        if token != right:
            lead = float(theirs[place, right] - theirs[place, token])
            assert lead <= 2 * _TOLERANCE, f"{what}: token {place} is {token}, expected {right}"
            return  # A near tie; what follows is another text.


@cache
def _folder() -> TemporaryDirectory[str]:
    """Lives as long as the process."""
    return TemporaryDirectory(prefix="chiplet-models-")


@cache
def _checkpoint(kind: str) -> Path:
    folder = Path(_folder().name) / kind.replace(" ", "-")
    folder.mkdir()
    write_checkpoint(kind, folder)
    return folder


@cache
def _reference() -> EngineMaker:
    """Core alone: the reference platform, and no plugin's providers."""
    options = DeviceOptions(device="reference")
    found = discover(options)
    plugins = replace(found, loaded=tuple(each for each in found.loaded if each.is_core))
    return EngineMaker(plugins, choose_device(plugins, options), options)


@cache
def _expected(kind: str, name: str) -> tuple[Sequence[Answer], SchedulerStats]:
    scenario = SCENARIOS[name]
    config = _config(kind, Dtype.FLOAT32, scenario)
    return serve(*_reference().start(config, ()), scenario.waves, scenario.sampling)


@cache
def _forced(kind: str, dtype: Dtype) -> Sequence[torch.Tensor]:
    """Distributions at each prompt's positions, `[num_positions, vocab]` float64."""
    config = _config(kind, dtype, SCENARIOS["chunked prefill"])
    answers, _ = serve(*_reference().start(config, ()), (_MIXED,), _FORCED)
    return [torch.from_numpy(each.logprobs(VOCAB_SIZE, of_prompt=True)) for each in answers]
