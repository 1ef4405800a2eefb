"""`chiplet bench prefix`: requests that share a long prefix."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from chiplet.cli.bench.report import Report, ReportOptions, publish
from chiplet.cli.bench.workload import exact_length, random_prompts
from chiplet.cli.command import ENGINE_GROUPS, MODEL, SERVER_ONLY, Command, Given
from chiplet.cli.settings import command_option
from chiplet.config import EngineConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixOptions:
    """Shared-prefix benchmark."""

    requests: int = command_option(32, "Requests at once.", minimum=1)
    prefix_tokens: int = command_option(1024, "Tokens that all prompts share.", minimum=1)
    question_tokens: int = command_option(32, "Tokens of each prompt's own.", minimum=1)
    output_tokens: int = command_option(16, "Tokens of each answer.", minimum=1)


def run(given: Given) -> int:
    """Run the workload with the radix cache and without, and report what each computed."""
    options = given.options("prefix", PrefixOptions())
    config = given.engine_config()
    figures: dict[str, dict[str, float]] = {}
    if config.cache.radix_cache:
        figures["radix cache"] = _measure(config, options)
    without = config.replacing("cache.radix_cache", False)
    figures["no radix cache"] = _measure(without, options)
    ratios: dict[str, float | int | str] = {}
    if len(figures) == 2:
        ours, plain = figures.values()
        ratios["speedup by the radix cache"] = round(plain["wall_s"] / ours["wall_s"], 2)
    report = Report(
        benchmark="prefix",
        command_line=given.command_line,
        workload={
            "model": config.model.model,
            "requests": options.requests,
            "prefix_tokens": options.prefix_tokens,
            "question_tokens": options.question_tokens,
            "output_tokens": options.output_tokens,
        },
        figures=figures,
        ratios=ratios,
    )
    publish(report, given.options("report", ReportOptions()))
    return 0


def _measure(config: EngineConfig, options: PrefixOptions) -> dict[str, float]:
    from chiplet.llm import LLM

    with LLM(config) as llm:
        vocab_size = llm.facts.limits.vocab_size
        llm.generate(random_prompts(1, 16, seed=3, vocab_size=vocab_size), exact_length(2))
        prompts = _prompts(options, vocab_size)
        start_s = time.perf_counter()
        completions = llm.generate(prompts, exact_length(options.output_tokens))
        wall_s = time.perf_counter() - start_s
    prompt_tokens = sum(len(each.prompt_token_ids) for each in completions)
    cached_tokens = sum(each.num_cached_tokens for each in completions)
    return {
        "wall_s": round(wall_s, 2),
        "prompt_tokens": prompt_tokens,
        "cached_prompt_tokens": cached_tokens,
        "computed_prompt_tokens": prompt_tokens - cached_tokens,
    }


def _prompts(options: PrefixOptions, vocab_size: int) -> Sequence[list[int]]:
    (prefix,) = random_prompts(1, options.prefix_tokens, seed=1, vocab_size=vocab_size)
    questions = random_prompts(
        options.requests, options.question_tokens, seed=2, vocab_size=vocab_size
    )
    return [prefix + question for question in questions]


COMMAND = Command(
    name="bench prefix",
    summary="Requests that share a long prefix, offline, with the radix cache and without.",
    run=run,
    groups={"prefix": PrefixOptions, "report": ReportOptions, **ENGINE_GROUPS},
    positional=MODEL,
    without=SERVER_ONLY,
)
