"""Engines of the kit: on the device under test, with one provider pinned, and on the reference."""

from __future__ import annotations

import io
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field, replace

import numpy as np

from chiplet.assembly import assemble, make_runner, make_tables
from chiplet.config import DeviceOptions, EngineConfig
from chiplet.engine import Engine
from chiplet.plugins import ChosenDevice, PluginSet, SelectionPlan
from chiplet.request import RequestLimits, RequestOutput
from chiplet.sampling_params import SamplingParams
from chiplet.scheduler.stats import SchedulerStats
from chiplet.worker import start


@dataclass(frozen=True, slots=True)
class EngineMaker:
    """Starts engines on a device that was chosen before, without asking all probes again.

    Attributes:
        plugin_set: what `options` allow.
        chosen: the device.
        options: as for a start by hand.
    """

    plugin_set: PluginSet
    chosen: ChosenDevice
    options: DeviceOptions

    def finish(self) -> ChosenDevice:
        """The device; see `chiplet.plugins.device.PendingDevice`."""
        return self.chosen

    def start(self, config: EngineConfig, pins: Sequence[str]) -> tuple[Engine, RequestLimits]:
        """A running engine, and what it can take."""
        with _quietly():
            engine, facts = start(self._on_device(config, pins), self)
        return engine, facts.limits

    def pins(
        self, config: EngineConfig, family: str, provider: str
    ) -> tuple[Sequence[str], Sequence[str]]:
        """What pins a provider to each operation of a model that it serves, and why not to others.

        Raises:
            AssertionError: it said that it would serve one, and failed.
        """
        choices = [
            each for each in self._plan(config).choices if each.operation.startswith(f"{family}/")
        ]
        served: set[str] = set()
        refused: set[str] = set()
        reasons: list[str] = []
        for choice in choices:
            if provider in {each.provider for each in choice.servers}:
                served.add(choice.operation)
                continue
            (rejection,) = (each for each in choice.rejections if each.provider == provider)
            assert not rejection.has_failed, f"{choice.operation}: {'; '.join(rejection.reasons)}"
            if rejection.pin:
                served.add(choice.operation)
            else:
                refused.add(choice.operation)
                reasons += rejection.reasons
        # An operation is pinned if all its shapes are served.
        pins = [f"{each}={provider}" for each in sorted(served - refused)]
        return pins, tuple(dict.fromkeys(reasons))

    def _plan(self, config: EngineConfig) -> SelectionPlan:
        with _quietly():
            parts = assemble(self._on_device(config, ()), self)
            make_runner(parts, *make_tables(parts, num_pages=1))
        return parts.selector.plan()

    def _on_device(self, config: EngineConfig, pins: Sequence[str]) -> EngineConfig:
        own = config.device
        options = replace(
            self.options,
            device=self.chosen.label,
            use=tuple(pins),
            prepare_first=own.prepare_first,
            eager=own.eager,
            self_check=own.self_check,
        )
        return replace(config, device=options)


@contextmanager
def _quietly() -> Generator[None]:
    """Without progress bars and warnings: there are hundreds of starts, and one bar for them."""
    with redirect_stderr(io.StringIO()):
        yield


@dataclass
class Answer:
    """All outputs of one request."""

    outputs: list[RequestOutput] = field(default_factory=list[RequestOutput])

    @property
    def token_ids(self) -> list[int]:
        """The answer."""
        return [token for each in self.outputs for token in each.token_ids]

    def logprobs(self, vocab_size: int, *, of_prompt: bool = False) -> np.ndarray:
        """Distributions at each position of the answer, or of the prompt from position 1 on.

        Shapes: returns `[num_positions, vocab_size]` float64.
        """
        outputs = self.outputs[:1] if of_prompt else self.outputs
        rows = [
            row
            for each in outputs
            for row in (each.prompt_logprobs if of_prompt else each.logprobs) or ()
        ]
        result = np.full((len(rows), vocab_size), np.nan)
        for number, row in enumerate(rows):
            result[number, list(row.top_token_ids)] = row.top_logprobs
        assert not np.isnan(result).any(), "log-probabilities of some tokens are missing"
        return result


def serve(
    engine: Engine,
    limits: RequestLimits,
    waves: Sequence[Sequence[Sequence[int]]],
    sampling: SamplingParams,
) -> tuple[list[Answer], SchedulerStats]:
    """Answers to prompts of token ids; a wave begins when the one before has ended.

    Raises:
        AssertionError: a request ended with an error.
    """
    answers: list[Answer] = []
    for wave in waves:
        mine: dict[str, Answer] = {}
        for prompt in wave:
            name = str(len(answers))
            array = np.array(prompt, dtype=np.int32)
            now_s = time.monotonic()
            engine.add(limits.request(name, array, sampling, seed=0, arrival_s=now_s))
            mine[name] = Answer()
            answers.append(mine[name])
        while engine.has_work:
            for output in engine.step():
                assert output.error is None, output.error
                mine[output.request_id].outputs.append(output)
    return answers, engine.stats()
