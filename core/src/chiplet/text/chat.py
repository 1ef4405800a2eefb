"""Chat templates: a conversation as the text that the model was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import jinja2

from chiplet.errors import RequestError
from chiplet.text.template import compile_template
from chiplet.text.tokenizer import Tokenizer


def apply_chat_template(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
    **kwargs: Any,
) -> str:
    """The prompt text of a conversation, special tokens included.

    Encode it with `add_special_tokens=False`: the template has written them.

    Args:
        tokenizer: has the template and its special tokens.
        messages: each with 'role' and 'content', a text or a list of text parts.
        add_generation_prompt: end where the model's next answer begins.
        tools: functions that the model may call, as JSON schemas.
        **kwargs: further variables of the template.

    Raises:
        RequestError: there is no template, or it refuses these messages.
    """
    if tokenizer.chat_template is None:
        raise RequestError(
            "The model has no chat template, so it takes no chat messages. Use completions, or "
            "start the server with '--chat-template FILE'.",
            param="messages",
        )
    variables: dict[str, Any] = {
        **tokenizer.special_tokens,
        **kwargs,
        "messages": [_plain_message(message, index) for index, message in enumerate(messages)],
        "tools": tools,
        "add_generation_prompt": add_generation_prompt,
    }
    try:
        return compile_template(tokenizer.chat_template).render(variables)
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
        # A template is a program: what it trips over is mostly a message it did not expect.
        raise RequestError(
            f"The model's chat template refuses these messages: {error}.", param="messages"
        ) from error


def _plain_message(given: object, index: int) -> dict[str, Any]:
    """The message with its content as one text."""
    param = f"messages[{index}]"
    if not isinstance(given, Mapping):
        raise RequestError(
            f"{param} is of type {type(given).__name__}; allowed: a mapping with 'role' and "
            "'content'. One call takes one conversation.",
            param=param,
        )
    message = cast(Mapping[str, Any], given)
    if not isinstance(message.get("role"), str):
        raise RequestError(f"{param} has no role; allowed: a text.", param=f"{param}.role")
    content = message.get("content")
    if isinstance(content, list | tuple):
        parts = cast(Sequence[Any], content)
        content = "\n".join(_part_text(part, f"{param}.content") for part in parts)
    elif content is not None and not isinstance(content, str):
        raise RequestError(
            f"{param}.content is of type {type(content).__name__}; allowed: a text or a list of "
            "text parts.",
            param=f"{param}.content",
        )
    return {**message, "content": content or ""}


def _part_text(part: Any, param: str) -> str:
    if isinstance(part, Mapping):
        described = cast(Mapping[str, Any], part)
        text = described.get("text")
        if described.get("type") == "text" and isinstance(text, str):
            return text
        kind = described.get("type")
        raise RequestError(
            f"{param} has a part of type {kind!r}; allowed: 'text' with a text.", param=param
        )
    raise RequestError(f"{param} has a part that is no object.", param=param)
