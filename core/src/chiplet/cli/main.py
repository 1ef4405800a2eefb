"""Entry point: finds the sub-command, imports it alone, and tells errors in at most three lines."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from chiplet import __version__
from chiplet.errors import ChipletError, ConfigError, RequestError

if TYPE_CHECKING:
    from chiplet.cli.command import Command

COMMANDS: Mapping[str, tuple[str, str]] = {
    "serve": ("chiplet.cli.serve", "Serve a model over HTTP."),
    "generate": ("chiplet.cli.generate", "Complete one prompt, or a JSONL file of them, offline."),
    "chat": ("chiplet.cli.chat", "Talk to a model in the terminal."),
    "pull": ("chiplet.cli.pull", "Fetch a model of the catalogue into the cache folder."),
    "doctor": ("chiplet.cli.doctor", "Check host, plugins, devices, model, port and caches."),
    "explain": ("chiplet.cli.explain", "Show who serves each operation, and why others do not."),
    "conformance": (
        "chiplet.testing.conformance.command",
        "Hold the providers of a device against the reference.",
    ),
    "plugin new": ("chiplet.cli.plugin.new", "Write a project that is a working plugin."),
    "bench startup": ("chiplet.cli.bench.startup", "From 'chiplet serve' to the first token."),
    "bench latency": ("chiplet.cli.bench.latency", "One request at a time."),
    "bench throughput": ("chiplet.cli.bench.throughput", "Many requests at once, offline."),
    "bench serve": ("chiplet.cli.bench.serve", "Load on an HTTP server."),
    "bench step": ("chiplet.cli.bench.step", "Steps beside the least that they could take."),
    "bench prefix": ("chiplet.cli.bench.prefix", "Requests that share a long prefix."),
    "bench perplexity": ("chiplet.cli.bench.perplexity", "How well a text is predicted."),
}
"""Sub-commands: the module that holds `COMMAND`, and a line for the help."""

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(words)
    except (ConfigError, RequestError) as error:
        _print_error(error)
        return EXIT_USAGE
    except ChipletError as error:
        _print_error(error)
        return EXIT_FAILURE
    except BrokenPipeError:
        # Whoever read the output is gone; without this the interpreter would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILURE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def load_command(name: str) -> Command:
    """A sub-command by its full name, like 'bench latency'; imports its module."""
    module, _ = COMMANDS[name]
    return importlib.import_module(module).COMMAND


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview(COMMANDS))
        return 0
    if words[0] in ("-V", "--version"):
        print(f"chiplet {__version__}")
        return 0
    name, rest = _split(words)
    if name in COMMANDS:
        from chiplet.cli.parsing import parse

        command = load_command(name)
        return command.run(parse(command, rest))
    family = {each: line for each, line in COMMANDS.items() if each.startswith(f"{name} ")}
    if family and (not rest or rest[0] in ("-h", "--help")):
        print(_overview(family))
        return 0
    raise _unknown_command(name, rest, family)


def _split(words: list[str]) -> tuple[str, list[str]]:
    pair = " ".join(words[:2])
    return (pair, words[2:]) if pair in COMMANDS and len(words) > 1 else (words[0], words[1:])


def _unknown_command(name: str, rest: list[str], family: Mapping[str, object]) -> ConfigError:
    from chiplet.cli.settings import suggestion

    if family:
        known = [each.partition(" ")[2] for each in family]
        return ConfigError(
            f"Unknown command '{name} {rest[0]}'; allowed: {', '.join(known)}.",
            remedy=suggestion(rest[0], known),
        )
    known = sorted({each.partition(" ")[0] for each in COMMANDS})
    kind = "flag" if name.startswith("-") else "command"
    remedy = suggestion(name, [*known, "--help", "--version"])
    return ConfigError(f"Unknown {kind} '{name}'.", remedy=remedy or "See 'chiplet --help'.")


def _overview(commands: Mapping[str, tuple[str, str]]) -> str:
    width = max(map(len, commands))
    lines = [f"  chiplet {name:<{width}}  {line}" for name, (_, line) in commands.items()]
    return "\n".join(
        [
            "Chiplet serves language models on any kind of hardware.",
            "",
            *lines,
            "",
            "'chiplet COMMAND --help' shows a command's flags; 'chiplet --version' the version.",
        ]
    )


def _print_error(error: ChipletError) -> None:
    problem = error.problem if isinstance(error, ConfigError) else str(error)
    remedy = error.remedy if isinstance(error, ConfigError) else ""
    # At most two lines of problem and one of remedy, whatever a library put into the message.
    lines = [line.strip() for line in problem.splitlines() if line.strip()][:2]
    print("error: " + "\n       ".join(lines), file=sys.stderr)
    if remedy:
        print("       " + " ".join(remedy.split()), file=sys.stderr)
