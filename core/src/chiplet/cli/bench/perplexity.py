"""`chiplet bench perplexity`: how well a model predicts a text, and what quantization costs it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from chiplet.cli.bench.report import Report, ReportOptions, publish
from chiplet.cli.command import ENGINE_GROUPS, MODEL, SERVER_ONLY, Command, Given
from chiplet.cli.settings import command_option
from chiplet.config import CacheOptions, DeviceOptions, EngineConfig
from chiplet.errors import ConfigError
from chiplet.formats.quantization.registry import NONE
from chiplet.sampling_params import SamplingParams

if TYPE_CHECKING:
    from chiplet.llm import LLM

REFERENCE_DEVICE = "reference"


@dataclass(frozen=True, slots=True, kw_only=True)
class PerplexityOptions:
    """Perplexity: of which text, in which pieces."""

    text: str | None = command_option(None, "Text file in UTF-8; required.", metavar="FILE")
    window_tokens: int = command_option(
        512, "Tokens of each piece; its first is given, the others are predicted.", minimum=2
    )
    windows: int | None = command_option(
        None, "Most pieces, from the start of the text; all whole ones if not given.", minimum=1
    )
    against_reference: bool = command_option(
        False,
        "Also run the same checkpoint, dequantized to float32, on core's reference platform.",
    )


@dataclass(frozen=True, slots=True)
class Prediction:
    """How a text was predicted.

    Attributes:
        num_tokens: predicted ones, the first of each window left out.
        loss: mean negative natural logarithm of their probabilities.
    """

    num_tokens: int
    loss: float

    @property
    def perplexity(self) -> float:
        """exp(loss): among so many equally likely tokens would one guess as well."""
        return math.exp(self.loss)


def predict(llm: LLM, windows: Sequence[Sequence[int]]) -> Prediction:
    """How well a model predicts each token of windows from those before it in its window."""
    params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
    logprobs = [
        each.logprob
        for completion in llm.generate(windows, params)
        for each in completion.prompt_logprobs or ()
    ]
    assert len(logprobs) == sum(len(window) - 1 for window in windows)
    return Prediction(len(logprobs), -math.fsum(logprobs) / len(logprobs))


def run(given: Given) -> int:
    """Measure, and compare if that was asked for."""
    options = given.options("perplexity", PerplexityOptions())
    text = _read(options.text)
    config = given.engine_config()
    names = {"chiplet": config}
    if options.against_reference:
        names["reference"] = reference_config(config)
    found: dict[str, Prediction] = {}
    figures: dict[str, dict[str, float | int | str]] = {}
    num_windows = 0
    for name, each in names.items():
        found[name], figures[name], num_windows = _measure(each, text, options)
    workload = {
        "text": Path(options.text or "").name,
        "window_tokens": options.window_tokens,
        "windows": num_windows,
        "predicted_tokens": found["chiplet"].num_tokens,
    }
    ratios: dict[str, float | int | str] = {}
    if options.against_reference:
        ratio = found["chiplet"].perplexity / found["reference"].perplexity
        ratios["perplexity, chiplet / reference in float32 (less is better)"] = round(ratio, 5)
    report = Report(
        benchmark="perplexity",
        command_line=given.command_line,
        workload=workload,
        figures=figures,
        ratios=ratios,
    )
    publish(report, given.options("report", ReportOptions()))
    return 0


def reference_config(config: EngineConfig) -> EngineConfig:
    """The same checkpoint in float32, unquantized, served by core's reference alone."""
    return replace(
        config,
        model=replace(config.model, dtype="float32", quantization=NONE, head_quantization=NONE),
        cache=CacheOptions(
            page_size=config.cache.page_size, max_total_tokens=config.cache.max_total_tokens
        ),
        device=DeviceOptions(device=REFERENCE_DEVICE),
    )


def _measure(
    config: EngineConfig, text: str, options: PerplexityOptions
) -> tuple[Prediction, dict[str, float | int | str], int]:
    from chiplet.llm import LLM

    with LLM(config) as llm:
        windows = cut(llm.tokenizer.encode(text, add_special_tokens=False), options)
        prediction = predict(llm, windows)
        figures: dict[str, float | int | str] = {
            "perplexity": round(prediction.perplexity, 4),
            "loss": round(prediction.loss, 6),
            "dtype": llm.facts.dtype,
            "device": llm.facts.device,
        }
    return prediction, figures, len(windows)


def cut(token_ids: Sequence[int], options: PerplexityOptions) -> list[Sequence[int]]:
    """Whole windows, one after another; a rest is left out.

    Raises:
        ConfigError: the text is shorter than one window.
    """
    size = options.window_tokens
    count = len(token_ids) // size
    if count == 0:
        raise ConfigError(
            f"The text has {len(token_ids)} tokens; a window takes {size}.",
            remedy="Give a longer text, or a smaller --window-tokens.",
        )
    count = min(count, options.windows or count)
    return [token_ids[index * size : (index + 1) * size] for index in range(count)]


def _read(path: str | None) -> str:
    if path is None:
        raise ConfigError(
            "--text is missing: perplexity is that of a text.",
            remedy="Give a file in UTF-8, like benchmarks/texts/handbook.txt of the source tree.",
        )
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(
            f"--text {path} cannot be read: {reason}.", remedy="Give a text file in UTF-8."
        ) from None


COMMAND = Command(
    name="bench perplexity",
    summary="How well a model predicts a text, offline, and how well its reference does.",
    run=run,
    groups={"perplexity": PerplexityOptions, "report": ReportOptions, **ENGINE_GROUPS},
    positional=MODEL,
    without=SERVER_ONLY,
)
