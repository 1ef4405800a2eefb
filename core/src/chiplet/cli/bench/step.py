"""`chiplet bench step`: steps of the engine beside their floors, and where their time goes."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from itertools import count, pairwise
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

from chiplet.cli.bench.report import Report, ReportOptions, publish
from chiplet.cli.bench.workload import exact_length, random_prompts
from chiplet.cli.command import ENGINE_GROUPS, MODEL, SERVER_ONLY, Command, Given
from chiplet.cli.settings import command_option
from chiplet.config import Dtype, EngineConfig, ModelConfig
from chiplet.errors import ConfigError
from chiplet.plugins import PluginSet, begin_choice, choose_device, discover

if TYPE_CHECKING:
    from chiplet.cli.bench.floors import Ceilings
    from chiplet.cli.bench.step_profile import StepProfile
    from chiplet.engine import Engine
    from chiplet.worker import EngineFacts

_WORK = re.compile(r"([1-9]\d*)x([1-9]\d*)")
_WARM_STEPS = 6
_SHOWN_KERNELS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOptions:
    """Step benchmark."""

    work: tuple[str, ...] = command_option(
        (),
        "So many requests with a context of so many tokens, like 64x1024; may be repeated. "
        "1x1024 if not given.",
        metavar="REQUESTSxTOKENS",
    )
    steps: int = command_option(32, "Measured steps of each.", minimum=1)
    profile: bool = command_option(
        False, "Also show what runs on the device meanwhile, and how long it is idle."
    )


@dataclass(frozen=True, slots=True)
class _Size:
    """So many requests, each with a context of so many tokens."""

    num_requests: int
    context: int


def run(given: Given) -> int:
    """Measure each work, then profile each."""
    options = given.options("step", StepOptions())
    config = given.engine_config()
    plugins = discover(config.device)
    try:
        return _measure(given, options, _Bench.start(config, options, plugins))
    finally:
        plugins.shut_down()


def _measure(given: Given, options: StepOptions, bench: _Bench) -> int:
    works = [_size(text) for text in options.work or ("1x1024",)]
    figures: dict[str, dict[str, float | int | str]] = {}
    for size in works:
        figures[f"{size.num_requests}x{size.context}"] = bench.measure(size)
    workload = bench.workload | {"steps": options.steps}
    report = Report(
        benchmark="step", command_line=given.command_line, workload=workload, figures=figures
    )
    publish(report, given.options("report", ReportOptions()))
    for size in works if options.profile else ():
        for phase, profile in bench.profiles(size).items():
            _show(profile, f"{size.num_requests}x{size.context}, {phase}")
    return 0


def _size(text: str) -> _Size:
    match = _WORK.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"work is '{text}'; allowed: REQUESTSxTOKENS, like 64x1024.",
            remedy="Give both numbers, with an x between them.",
        )
    return _Size(int(match[1]), int(match[2]))


class _Bench:
    """One engine, measured with several works."""

    def __init__(
        self,
        engine: Engine,
        facts: EngineFacts,
        model: ModelConfig,
        ceilings: Ceilings,
        config: EngineConfig,
        num_steps: int,
    ) -> None:  # fmt: skip
        self._engine = engine
        self._facts = facts
        self._model = model
        self._ceilings = ceilings
        self._quantization = config.model.quantization
        self._head = config.model.head_quantization
        self._num_steps = num_steps
        self._ids = count()

    @classmethod
    def start(cls, config: EngineConfig, options: StepOptions, plugins: PluginSet) -> _Bench:
        """Measure the device's ceilings, then start an engine with everything prepared."""
        import torch

        from chiplet.cli.bench.floors import measure_ceilings
        from chiplet.formats.catalogue import resolve_model
        from chiplet.formats.model_files import read_model_config
        from chiplet.worker import start

        platform = choose_device(plugins, config.device).platform
        platform.activate()
        model = read_model_config(resolve_model(config.model.model), config.model.load_format)
        config = config.replacing("device.prepare_first", True)
        engine, facts = start(config, begin_choice(plugins, config.device))
        # Afterwards, because what is cached of its memory would count as the engine's.
        ceilings = measure_ceilings(platform, getattr(torch, facts.dtype))
        ceilings = ceilings.of_ranks(config.device.tensor_parallel_size)
        return cls(engine, facts, model, ceilings, config, options.steps)

    @property
    def workload(self) -> dict[str, float | int | str]:
        """What is the same for all works."""
        return {
            "model": self._facts.model_name,
            "device": self._facts.device,
            "dtype": self._facts.dtype,
            "quantization": self._quantization,
            "head_quantization": self._head,
            "copy_GB_per_s": round(self._ceilings.bytes_per_s / 1e9),
            "product_TFLOP_per_s": round(self._ceilings.flops_per_s / 1e12, 2),
        }

    def measure(self, size: _Size) -> dict[str, float | int | str]:
        """Figures of prefill and of decode steps, each beside its floor."""
        from chiplet.cli.bench.floors import decode_work, prefill_work

        self._fill(size)  # what is compiled at its first use is compiled now
        self._drain()
        prefill_s = self._fill(size)
        step_s = self._steps(self._num_steps)
        self._drain()
        dtype = Dtype(self._facts.dtype)
        sizes = {"num_requests": size.num_requests, "context": size.context}
        arguments = (self._model, dtype, self._quantization)
        prefill, decode = (
            work(*arguments, **sizes, head=self._head) for work in (prefill_work, decode_work)
        )
        prefill_floor_s = prefill.floor_s(self._ceilings)
        decode_floor_s = decode.floor_s(self._ceilings)
        return {
            "prefill_ms": round(prefill_s * 1e3, 2),
            "prefill_floor_ms": round(prefill_floor_s * 1e3, 4),
            "prefill_tokens_per_s": round(size.num_requests * size.context / prefill_s),
            "prefill_share_of_floor": round(prefill_floor_s / prefill_s, 3),
            "decode_ms": round(step_s * 1e3, 3),
            "decode_floor_ms": round(decode_floor_s * 1e3, 4),
            "decode_tokens_per_s": round(size.num_requests / step_s, 1),
            "decode_share_of_floor": round(decode_floor_s / step_s, 3),
        }

    def profiles(self, size: _Size) -> dict[str, StepProfile]:
        """What runs on the device until each request has a token, and in decode steps."""
        from chiplet.cli.bench.step_profile import profiled

        prefill = profiled(lambda: self._fill(size), 1)
        self._steps(1)
        decode = profiled(lambda: self._steps(self._num_steps, warm_steps=0), self._num_steps)
        self._drain()
        return {"prefill": prefill, "a decode step": decode}

    def _fill(self, size: _Size) -> float:
        """Add requests and run until each has its first token; seconds that took."""
        seed = next(self._ids)
        vocab_size = self._facts.limits.vocab_size
        prompts = random_prompts(size.num_requests, size.context, seed=seed, vocab_size=vocab_size)
        # Long enough for all that is measured: what is left over is aborted.
        sampling = exact_length(2 * self._num_steps + 4 * _WARM_STEPS)
        waiting = {f"{seed}-{index}" for index in range(size.num_requests)}
        self._running = tuple(waiting)
        requests = [
            self._facts.limits.request(
                name,
                np.array(prompt, dtype=np.int32),
                sampling,
                seed=0,
                arrival_s=time.monotonic(),
            )
            for name, prompt in zip(sorted(waiting), prompts, strict=True)
        ]
        start_s = time.perf_counter()
        for request in requests:
            self._engine.add(request)
        while waiting:
            waiting -= {each.request_id for each in self._engine.step()}
        return time.perf_counter() - start_s

    def _steps(self, num_steps: int, *, warm_steps: int = _WARM_STEPS) -> float:
        """Median seconds of a step while all requests decode."""
        for _ in range(warm_steps):
            self._engine.step()
        times = [time.perf_counter()]
        for _ in range(num_steps):
            self._engine.step()
            times.append(time.perf_counter())
        return median(later - earlier for earlier, later in pairwise(times))

    def _drain(self) -> None:
        for name in self._running:
            self._engine.abort(name)
        while self._engine.has_work:
            self._engine.step()


def _show(profile: StepProfile, title: str) -> None:
    console = Console()
    table = Table(title=f"Device time, {title}")
    for heading in ("kernel", "calls", "us", "share"):
        table.add_column(heading, justify="left" if heading == "kernel" else "right")
    kernels = profile.kernels
    for kernel in kernels[:_SHOWN_KERNELS]:
        share = kernel.us / profile.step_us
        table.add_row(kernel.name[:60], f"{kernel.calls:.1f}", f"{kernel.us:.1f}", f"{share:.1%}")
    rest_us = sum(kernel.us for kernel in kernels[_SHOWN_KERNELS:])
    table.add_row("others", "", f"{rest_us:.1f}", f"{rest_us / profile.step_us:.1%}")
    idle_us = profile.step_us - profile.busy_us
    table.add_row("idle", "", f"{idle_us:.1f}", f"{idle_us / profile.step_us:.1%}")
    console.print(table)


COMMAND = Command(
    name="bench step",
    summary="Steps of the engine beside the least that they could take, and where the time goes.",
    run=run,
    groups={"step": StepOptions, "report": ReportOptions, **ENGINE_GROUPS},
    positional=MODEL,
    without=SERVER_ONLY | {"device.prepare_first"},
)
