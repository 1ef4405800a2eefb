"""`chiplet bench serve`: load on an HTTP server."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from chiplet.cli.bench.http_client import Address, Timeline, parse_address, stream
from chiplet.cli.bench.report import Report, ReportOptions, percentiles, publish
from chiplet.cli.bench.server_process import server_process
from chiplet.cli.bench.workload import random_prompts
from chiplet.cli.command import ENGINE_GROUPS, MODEL, Command, Given
from chiplet.cli.settings import command_option
from chiplet.errors import ConfigError, EngineError


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """Load: which requests, and how fast they come."""

    url: str | None = command_option(
        None, "A server that runs already; one is started if not given.", metavar="URL"
    )
    url_api_key: str | None = command_option(None, "Key for that server.", metavar="KEY")
    requests: int = command_option(64, "How many requests.", minimum=1)
    input_tokens: int = command_option(128, "Tokens of each prompt.", minimum=1)
    output_tokens: int = command_option(128, "Tokens of each answer.", minimum=1)
    request_rate: float | None = command_option(
        None, "Requests per second, at random moments; all at once if not given.", minimum=0.001
    )
    concurrency: int | None = command_option(
        None, "Most requests under way at a time; no limit if not given.", minimum=1
    )
    load_seed: int = command_option(0, "Seed of prompts and arrival times.", minimum=0)


def run(given: Given) -> int:
    """Put load on a server and report latencies and throughput."""
    options = given.options("load", LoadOptions())
    engine = {
        path: value for path, value in given.values.items() if path.split(".")[0] in ENGINE_GROUPS
    }
    if options.url is not None:
        if engine:
            raise ConfigError(
                f"--url names a running server, so {', '.join(sorted(engine))} cannot be set.",
                remedy="Leave either out.",
            )
        address = parse_address(options.url, options.url_api_key)
        timelines = asyncio.run(_load(address, options))
    else:
        with server_process(engine) as server:
            asyncio.run(server.wait_until_ok("/readyz"))
            timelines = asyncio.run(_load(server.address, options))
    report = Report(
        benchmark="serve",
        command_line=given.command_line,
        workload={
            "requests": options.requests,
            "input_tokens": options.input_tokens,
            "output_tokens": options.output_tokens,
            "request_rate": options.request_rate or "all at once",
            "concurrency": options.concurrency or "no limit",
        },
        figures={"chiplet": summarize(timelines)},
    )
    publish(report, given.options("report", ReportOptions()))
    return 0


def summarize(timelines: Sequence[Timeline]) -> dict[str, float]:
    """Figures of a load: throughput, and percentiles of the four latencies.

    TTFT: to the first text. TPOT: per token after the first, one value per request. ITL: between
    two arrivals of text. E2E: to the end of the stream.

    Raises:
        EngineError: no request was answered.
    """
    good = [each for each in timelines if not each.error and each.arrivals_s]
    if not good:
        raise EngineError(f"No request was answered; the first said: {timelines[0].error}")
    wall_s = max(each.end_s for each in good) - min(each.start_s for each in good)
    output_tokens = sum(each.num_output_tokens for each in good)
    prompt_tokens = sum(each.num_prompt_tokens for each in good)
    return {
        "answered": len(good),
        "failed": len(timelines) - len(good),
        "wall_s": round(wall_s, 2),
        "requests_per_s": round(len(good) / wall_s, 2),
        "output_tokens_per_s": round(output_tokens / wall_s, 1),
        "total_tokens_per_s": round((output_tokens + prompt_tokens) / wall_s, 1),
        "cached_prompt_tokens": sum(each.num_cached_tokens for each in good),
        **percentiles("ttft", [each.arrivals_s[0] - each.start_s for each in good]),
        **percentiles(
            "tpot",
            [
                (each.arrivals_s[-1] - each.arrivals_s[0]) / (each.num_output_tokens - 1)
                for each in good
                if each.num_output_tokens > 1
            ],
        ),
        **percentiles(
            "itl", [after - before for each in good for before, after in pairwise(each.arrivals_s)]
        ),
        **percentiles("e2e", [each.end_s - each.start_s for each in good]),
    }


async def _load(address: Address, options: LoadOptions) -> list[Timeline]:
    prompts = random_prompts(options.requests, options.input_tokens, seed=options.load_seed)
    moments = _arrivals(options)
    gate = asyncio.Semaphore(options.concurrency or options.requests)
    start_s = time.perf_counter()

    async def one(prompt: list[int], moment_s: float) -> Timeline:
        await asyncio.sleep(max(0.0, start_s + moment_s - time.perf_counter()))
        async with gate:
            body = {
                "prompt": prompt,
                "max_tokens": options.output_tokens,
                "temperature": 0,
                "ignore_eos": True,
            }
            return await stream(address, "/v1/completions", body)

    return await asyncio.gather(
        *(one(prompt, moment) for prompt, moment in zip(prompts, moments, strict=True))
    )


def _arrivals(options: LoadOptions) -> list[float]:
    if options.request_rate is None:
        return [0.0] * options.requests
    source = random.Random(options.load_seed)
    gaps_s = [source.expovariate(options.request_rate) for _ in range(options.requests)]
    return list(accumulate(gaps_s))


COMMAND = Command(
    name="bench serve",
    summary="Load on a running server, or on one started for it: TTFT, TPOT, ITL, E2E.",
    run=run,
    groups={"load": LoadOptions, "report": ReportOptions, **ENGINE_GROUPS},
    positional=MODEL,
)
