"""`chiplet chat`: a conversation in the terminal, or over a pipe, one line a message."""

from __future__ import annotations

import signal
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING

from chiplet.cli.command import ENGINE_GROUPS, MODEL, SERVER_ONLY, Command, Given
from chiplet.cli.offline import open_llm
from chiplet.cli.settings import command_option, suggestion
from chiplet.errors import RequestError
from chiplet.sampling_params import SamplingParams

if TYPE_CHECKING:
    from chiplet.llm import LLM

DEFAULTS = SamplingParams(temperature=0.7, top_p=0.95)
"""Livelier than greedy; an answer may be as long as the context leaves."""

HELP = "/reset starts anew, /system TEXT sets the system prompt and starts anew, /exit leaves."


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    """Chat: how the conversation begins."""

    system: str | None = command_option(None, "System prompt.")


@dataclass(slots=True)
class Conversation:
    """Messages so far; only this module changes it."""

    system: str | None
    turns: list[dict[str, str]] = field(default_factory=list[dict[str, str]])

    def messages(self) -> list[dict[str, str]]:
        """All messages, the system prompt first if there is one."""
        head = [{"role": "system", "content": self.system}] if self.system else []
        return head + self.turns

    def command(self, line: str) -> str | None:
        """What to say after a line that starts with '/'; None means to leave."""
        word, _, rest = line.partition(" ")
        if word == "/exit":
            return None
        if word == "/reset":
            self.turns.clear()
            return "The conversation starts anew."
        if word == "/system":
            self.system = rest.strip() or None
            self.turns.clear()
            return "The system prompt is set." if self.system else "There is no system prompt now."
        if word == "/help":
            return HELP
        known = suggestion(word, ("/exit", "/reset", "/system", "/help"))
        return f"Unknown command {word}. {known or HELP}"


@dataclass(slots=True)
class _Interrupt:
    """Whether Ctrl-C was pressed; set by the signal handler."""

    is_set: bool = False


def run(given: Given) -> int:
    """Talk until the input ends."""
    options = given.options("chat", ChatOptions())
    params = given.sampling(DEFAULTS)
    conversation = Conversation(options.system)
    is_terminal = sys.stdin.isatty()
    with open_llm(given) as llm:
        if is_terminal:
            print(f"{llm.facts.model_name} on {llm.facts.device}. {HELP}")
        for line in _lines(is_terminal):
            if line.startswith("/"):
                said = conversation.command(line)
                if said is None:
                    break
                print(said)
            else:
                _answer(llm, conversation, line, params)
    return 0


def _answer(llm: LLM, conversation: Conversation, line: str, params: SamplingParams) -> None:
    conversation.turns.append({"role": "user", "content": line})
    parts: list[str] = []
    try:
        with _interruptible() as interrupt:
            for delta in llm.stream_chat(conversation.messages(), params):
                parts.append(delta.text)
                print(delta.text, end="", flush=True)
                if interrupt.is_set:
                    print(" [interrupted]", end="")
                    break
    except RequestError as error:
        # Most often the conversation has outgrown the context; the person may reset it.
        conversation.turns.pop()
        print(f"error: {error} /reset starts anew.", file=sys.stderr)
        return
    print()
    conversation.turns.append({"role": "assistant", "content": "".join(parts)})


@contextmanager
def _interruptible() -> Generator[_Interrupt]:
    # An exception in the middle of an engine step would leave it half done, so Ctrl-C only sets a
    # mark that is looked at between steps; pressed twice, it ends the program.
    interrupt = _Interrupt()

    def handle(signal_number: int, frame: FrameType | None) -> None:
        if interrupt.is_set:
            raise KeyboardInterrupt
        interrupt.is_set = True

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)


def _lines(is_terminal: bool) -> Iterator[str]:
    if is_terminal:
        import readline  # noqa: F401 # pyright: ignore[reportUnusedImport] - gives input() arrow keys and history
    while True:
        try:
            line = input("> " if is_terminal else "").strip()
        except EOFError:
            if is_terminal:
                print()
            return
        if line:
            yield line


COMMAND = Command(
    name="chat",
    summary="Talk to a model in the terminal; reads lines from a pipe as well.",
    run=run,
    groups={"chat": ChatOptions, "sampling": SamplingParams, **ENGINE_GROUPS},
    positional=MODEL,
    without=frozenset(
        {
            "sampling.n",
            "sampling.logprobs",
            "sampling.prompt_logprobs",
        }
    )
    | SERVER_ONLY,
)
