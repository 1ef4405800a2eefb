"""`chiplet bench latency`: one request at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from chiplet.cli.bench.offline import RivalOptions, contest, middle, seconds
from chiplet.cli.bench.report import Report, ReportOptions, publish
from chiplet.cli.bench.workload import exact_length, random_prompts
from chiplet.cli.command import ENGINE_GROUPS, MODEL, SERVER_ONLY, Command, Given
from chiplet.cli.settings import command_option

Complete = Callable[[Sequence[int], int], object]
"""Completes one prompt with so many tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyOptions:
    """Latency benchmark."""

    input_tokens: int = command_option(128, "Tokens of the prompt.", minimum=1)
    output_tokens: int = command_option(128, "Tokens of the answer.", minimum=2)
    repeats: int = command_option(5, "Measured requests; the median counts.", minimum=1)


@dataclass(slots=True)
class _Samples:
    """Seconds of each repeat."""

    first_s: list[float] = field(default_factory=list[float])
    total_s: list[float] = field(default_factory=list[float])

    def figures(self, num_tokens: int) -> dict[str, float]:
        """Medians. A token after the first costs what the rest of the answer took, on average."""
        per_token_s = [
            (total - first) / (num_tokens - 1)
            for first, total in zip(self.first_s, self.total_s, strict=True)
        ]
        return {
            "ttft_ms": middle([each * 1e3 for each in self.first_s]),
            "per_token_ms": middle([each * 1e3 for each in per_token_s], 2),
            "decode_tokens_per_s": middle([1 / each for each in per_token_s]),
            "output_tokens_per_s": middle([num_tokens / each for each in self.total_s]),
        }


def run(given: Given) -> int:
    """Measure, and compare if that was asked for."""
    options = given.options("latency", LatencyOptions())
    rival_options = given.options("rival", RivalOptions())
    with contest(given.engine_config(), rival_options) as both:
        llm, rival = both.llm, both.rival
        contestants: dict[str, Complete] = {
            "chiplet": lambda prompt, n: llm.generate([prompt], exact_length(n))
        }
        if rival is not None:
            contestants["transformers"] = lambda prompt, n: rival.generate([prompt], n)
        samples = _measure(contestants, options, llm.facts.limits.vocab_size)
        figures = {name: each.figures(options.output_tokens) for name, each in samples.items()}
        workload = {
            **both.workload,
            "input_tokens": options.input_tokens,
            "output_tokens": options.output_tokens,
            "repeats": options.repeats,
        }
    ratios: dict[str, float | int | str] = {}
    if rival is not None:
        ours, theirs = figures["chiplet"], figures["transformers"]
        for name in ("decode_tokens_per_s", "output_tokens_per_s"):
            ratios[f"chiplet / transformers, {name}"] = round(ours[name] / theirs[name], 2)
        ratios["transformers / chiplet, ttft_ms"] = round(theirs["ttft_ms"] / ours["ttft_ms"], 2)
    report = Report(
        benchmark="latency",
        command_line=given.command_line,
        workload=workload,
        figures=figures,
        ratios=ratios,
    )
    publish(report, given.options("report", ReportOptions()))
    return 0


def _measure(
    contestants: dict[str, Complete], options: LatencyOptions, vocab_size: int
) -> dict[str, _Samples]:
    # Every request has a prompt of its own, so that no cached prefix flatters the first token.
    needed = 2 * (options.repeats + 1)
    prompts = random_prompts(needed, options.input_tokens, seed=0, vocab_size=vocab_size)
    samples = {name: _Samples() for name in contestants}
    for index in range(options.repeats + 1):
        short, long = prompts[2 * index], prompts[2 * index + 1]
        # Contestants alternate, so that both meet the same moods of the machine.
        for name, complete in contestants.items():
            first_s = seconds(lambda: complete(short, 1))  # noqa: B023 - called at once
            total_s = seconds(lambda: complete(long, options.output_tokens))  # noqa: B023
            if index > 0:  # the first round warms up
                samples[name].first_s.append(first_s)
                samples[name].total_s.append(total_s)
    return samples


COMMAND = Command(
    name="bench latency",
    summary="One request at a time, offline: time to the first token and per token.",
    run=run,
    groups={
        "latency": LatencyOptions,
        "rival": RivalOptions,
        "report": ReportOptions,
        **ENGINE_GROUPS,
    },
    positional=MODEL,
    without=SERVER_ONLY,
)
