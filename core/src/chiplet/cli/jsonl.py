"""JSONL files of prompts and answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from chiplet.cli.settings import suggestion
from chiplet.errors import ConfigError, RequestError
from chiplet.sampling_params import SamplingParams

if TYPE_CHECKING:
    from chiplet.llm import LLM, Completion

SAMPLING_FIELDS = tuple(each.name for each in fields(SamplingParams))
OWN_FIELDS = ("id", "prompt", "messages")


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One line of the input.

    Attributes:
        line: its number, from 1.
        id: what the line calls itself; None if it does not.
        prompt: text or token ids; None with messages.
        messages: a chat; empty with a prompt.
    """

    line: int
    id: Any
    prompt: str | Sequence[int] | None
    messages: Sequence[Mapping[str, Any]]
    params: SamplingParams

    def prompt_for(self, llm: LLM) -> str | Sequence[int]:
        """The prompt as `LLM.generate` takes it; a chat goes through the model's template."""
        if self.prompt is not None:
            return self.prompt
        return llm.chat_prompt(self.messages)


def read_tasks(path: Path, defaults: SamplingParams) -> list[Task]:
    """The lines of a JSONL file; empty lines are skipped.

    Raises:
        ConfigError: the file cannot be read, or a line is not what it should be.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--input {path} cannot be read: {error}.", remedy="Check the path."
        ) from None
    tasks = [
        _task(path, number, line, defaults) for number, line in enumerate(lines, 1) if line.strip()
    ]
    if not tasks:
        raise ConfigError(f"--input {path} has no lines.", remedy='Write {"prompt": "..."}.')
    return tasks


def answer_line(task: Task, completion: Completion) -> str:
    """The answers to a task as a line of JSON."""
    answers: list[dict[str, Any]] = []
    for answer in completion.answers:
        row: dict[str, Any] = {
            "text": answer.text,
            "finish_reason": str(answer.finish_reason),
            "num_tokens": len(answer.token_ids),
        }
        if answer.logprobs is not None:
            row["logprobs"] = [asdict(each) for each in answer.logprobs]
        answers.append(row)
    content: dict[str, Any] = {"line": task.line}
    if task.id is not None:
        content["id"] = task.id
    content["answers"] = answers
    content["num_prompt_tokens"] = len(completion.prompt_token_ids)
    content["num_cached_tokens"] = completion.num_cached_tokens
    return json.dumps(content, ensure_ascii=False) + "\n"


def _task(path: Path, number: int, text: str, defaults: SamplingParams) -> Task:
    where = f"{path}, line {number}"
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ConfigError(
            f"{where} is not JSON: {error}.", remedy="Write one object a line."
        ) from None
    if not isinstance(content, dict):
        raise ConfigError(f"{where} is no object.", remedy='Write {"prompt": "..."}.')
    known = (*OWN_FIELDS, *SAMPLING_FIELDS)
    for key in content:
        if key not in known:
            raise ConfigError(
                f"{where}: unknown field '{key}'.",
                remedy=suggestion(key, known) or "Fields are prompt, messages, id, and sampling.",
            )
    prompt, messages = content.get("prompt"), content.get("messages")
    if (prompt is None) == (messages is None):
        raise ConfigError(f"{where} needs 'prompt' or 'messages', one of them.")
    if not _is_prompt(prompt) or not _is_chat(messages):
        raise ConfigError(
            f"{where}: 'prompt' is text or a list of token ids, 'messages' a list of objects."
        )
    return Task(
        line=number,
        id=content.get("id"),
        prompt=prompt,
        messages=messages or (),
        params=_params(where, content, defaults),
    )


def _params(where: str, content: Mapping[str, Any], defaults: SamplingParams) -> SamplingParams:
    own = {name: value for name, value in content.items() if name in SAMPLING_FIELDS}
    if isinstance(own.get("stop"), str):
        own["stop"] = [own["stop"]]
    base = {name: getattr(defaults, name) for name in SAMPLING_FIELDS}
    try:
        # Keys of a JSON object are text; those of logit_bias mean token ids.
        return msgspec.convert({**base, **own}, SamplingParams, strict=False)
    except (msgspec.ValidationError, RequestError) as error:
        raise ConfigError(f"{where}: {error}", remedy="Mend the line.") from None


def _is_prompt(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(type(each) is int for each in value)
    return value is None or isinstance(value, str)


def _is_chat(value: Any) -> bool:
    return value is None or (
        isinstance(value, list) and bool(value) and all(isinstance(each, dict) for each in value)
    )
