"""`chiplet generate`: completes one prompt in the terminal, or a file of prompts."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from chiplet.cli.command import ENGINE_GROUPS, SERVER_ONLY, Command, Given, Positional
from chiplet.cli.jsonl import answer_line, read_tasks
from chiplet.cli.offline import open_llm
from chiplet.cli.settings import command_option
from chiplet.errors import ConfigError
from chiplet.sampling_params import SamplingParams

if TYPE_CHECKING:
    from chiplet.llm import LLM

DEFAULTS = SamplingParams(max_tokens=256)
"""A completion without limit would often run to the end of the context."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateOptions:
    """Prompts and answers: where they come from and go."""

    prompt: str | None = command_option(None, "Text to complete; read from a pipe if not given.")
    chat: bool = command_option(
        False, "Ask the prompt as a question, with the model's chat template."
    )
    input: str | None = command_option(
        None,
        "JSONL file; each line has 'prompt' (text or token ids) or 'messages', and any sampling "
        "fields of its own.",
        metavar="FILE",
    )
    output: str | None = command_option(
        None, "JSONL file for the answers to --input; the terminal if not given.", metavar="FILE"
    )


def run(given: Given) -> int:
    """Complete what was given."""
    options = given.options("prompts", GenerateOptions())
    params = given.sampling(DEFAULTS)
    if options.input is not None:
        if options.prompt is not None or options.chat:
            raise ConfigError(
                "--input stands beside a prompt or --chat.",
                remedy="Give one; a line of the file is a chat when it has 'messages'.",
            )
        return _run_file(given, options, params)
    if options.output is not None:
        raise ConfigError("--output needs --input.", remedy="Redirect: chiplet generate ... > FILE")
    if params.n > 1 or params.logprobs is not None:
        raise ConfigError(
            "--n and --logprobs have no place in streamed text.", remedy="Use --input FILE.jsonl."
        )
    prompt = options.prompt if options.prompt is not None else _piped()
    with open_llm(given) as llm:
        _print_stream(llm, prompt, params, is_chat=options.chat)
    return 0


def _print_stream(llm: LLM, prompt: str, params: SamplingParams, *, is_chat: bool) -> None:
    if is_chat:
        deltas = llm.stream_chat([{"role": "user", "content": prompt}], params)
    else:
        deltas = llm.stream(prompt, params)
    is_empty, reason = True, None
    for delta in deltas:
        print(delta.text, end="", flush=True)
        is_empty, reason = is_empty and not delta.text, delta.finish_reason
    print()
    if is_empty and reason == "stop":
        hint = "" if is_chat else " Ask a question with --chat."
        print(f"note: The model ended its answer before it wrote any text.{hint}", file=sys.stderr)
    elif is_empty:
        print(f"note: The answer has no text and ended with '{reason}'.", file=sys.stderr)


def _piped() -> str:
    if sys.stdin.isatty():
        raise ConfigError(
            "There is no prompt.", remedy="Write one: chiplet generate 'Once upon a time'"
        )
    return sys.stdin.read().rstrip("\n")


def _run_file(given: Given, options: GenerateOptions, params: SamplingParams) -> int:
    assert options.input is not None
    tasks = read_tasks(Path(options.input), params)
    # Opened before the work, so that a path that cannot be written costs no answers.
    target = _open_output(options.output)
    with target as file, open_llm(given) as llm:
        completions = llm.generate(
            [task.prompt_for(llm) for task in tasks],
            [task.params for task in tasks],
            progress=True,
        )
        file.writelines(
            answer_line(task, completion)
            for task, completion in zip(tasks, completions, strict=True)
        )
    return 0


def _open_output(path: str | None) -> AbstractContextManager[TextIO]:
    if path is None:
        return nullcontext(sys.stdout)
    try:
        return Path(path).open("w", encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"--output {path} cannot be written: {error.strerror}.",
            remedy="Give a file in a folder that exists.",
        ) from None


COMMAND = Command(
    name="generate",
    summary="Complete one prompt, or a JSONL file of them, without a server.",
    run=run,
    groups={"prompts": GenerateOptions, "sampling": SamplingParams, **ENGINE_GROUPS},
    positional=Positional(name="prompt", help="Text to complete.", sets="prompts.prompt"),
    without=frozenset({"prompts.prompt", "sampling.prompt_logprobs"}) | SERVER_ONLY,
)
