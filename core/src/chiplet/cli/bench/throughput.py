"""`chiplet bench throughput`: many requests at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from chiplet.cli.bench.offline import Contest, RivalOptions, contest, middle, seconds
from chiplet.cli.bench.report import Report, ReportOptions, publish
from chiplet.cli.bench.workload import exact_length, random_prompts
from chiplet.cli.command import ENGINE_GROUPS, MODEL, SERVER_ONLY, Command, Given
from chiplet.cli.settings import command_option

OURS = "chiplet"
BATCHED = "transformers, one batch"
ONE_BY_ONE = "transformers, one by one"


@dataclass(frozen=True, slots=True, kw_only=True)
class ThroughputOptions:
    """Throughput benchmark."""

    requests: int = command_option(64, "Requests at once.", minimum=1)
    input_tokens: int = command_option(128, "Tokens of each prompt.", minimum=1)
    output_tokens: int = command_option(128, "Tokens of each answer.", minimum=1)
    repeats: int = command_option(1, "Measured rounds; the median counts.", minimum=1)
    one_by_one: int = command_option(
        8,
        "How many of the requests the rival serves one after another to find its rate that way; "
        "0 leaves it out.",
        minimum=0,
    )


@dataclass(slots=True)
class _Rates:
    """Output tokens per second of each round, by contestant."""

    by_name: dict[str, list[float]] = field(default_factory=dict[str, list[float]])

    def add(self, name: str, num_tokens: int, elapsed_s: float) -> None:
        self.by_name.setdefault(name, []).append(num_tokens / elapsed_s)


def run(given: Given) -> int:
    """Measure, and compare if that was asked for."""
    options = given.options("throughput", ThroughputOptions())
    with contest(given.engine_config(), given.options("rival", RivalOptions())) as both:
        rates = _measure(both, options)
        workload = {
            **both.workload,
            "requests": options.requests,
            "input_tokens": options.input_tokens,
            "output_tokens": options.output_tokens,
            "repeats": options.repeats,
        }
        if both.rival is not None:
            workload["one_by_one"] = options.one_by_one
    share = options.input_tokens / options.output_tokens
    figures = {
        name: {
            "output_tokens_per_s": middle(values),
            "total_tokens_per_s": middle([value * (1 + share) for value in values]),
            "requests_per_s": middle([value / options.output_tokens for value in values], 2),
        }
        for name, values in rates.by_name.items()
    }
    ours = figures[OURS]["output_tokens_per_s"]
    ratios = {
        f"{OURS} / {name}": round(ours / each["output_tokens_per_s"], 2)
        for name, each in figures.items()
        if name != OURS
    }
    report = Report(
        benchmark="throughput",
        command_line=given.command_line,
        workload=workload,
        figures=figures,
        ratios=ratios,
    )
    publish(report, given.options("report", ReportOptions()))
    return 0


def _measure(both: Contest, options: ThroughputOptions) -> _Rates:
    vocab_size = both.llm.facts.limits.vocab_size
    warm = random_prompts(2, options.input_tokens, seed=0, vocab_size=vocab_size)
    both.llm.generate(warm, exact_length(2))
    if both.rival is not None:
        both.rival.generate(warm, 2)
    rates = _Rates()
    for index in range(options.repeats):
        prompts = random_prompts(
            options.requests, options.input_tokens, seed=index + 1, vocab_size=vocab_size
        )
        _round(both, options, prompts, rates)
    return rates


def _round(
    both: Contest, options: ThroughputOptions, prompts: Sequence[list[int]], rates: _Rates
) -> None:
    length = options.output_tokens
    params = exact_length(length)
    elapsed_s = seconds(lambda: both.llm.generate(prompts, params))
    rates.add(OURS, len(prompts) * length, elapsed_s)
    rival = both.rival
    if rival is None:
        return
    elapsed_s = seconds(lambda: rival.generate(prompts, length))
    rates.add(BATCHED, len(prompts) * length, elapsed_s)
    few = prompts[: options.one_by_one]
    if few:
        elapsed_s = seconds(lambda: [rival.generate([prompt], length) for prompt in few])
        rates.add(ONE_BY_ONE, len(few) * length, elapsed_s)


COMMAND = Command(
    name="bench throughput",
    summary="Many requests at once, offline: tokens per second.",
    run=run,
    groups={
        "throughput": ThroughputOptions,
        "rival": RivalOptions,
        "report": ReportOptions,
        **ENGINE_GROUPS,
    },
    positional=MODEL,
    without=SERVER_ONLY,
)
