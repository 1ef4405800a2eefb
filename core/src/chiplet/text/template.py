"""The language of chat templates: Jinja in a sandbox, with the usual helpers."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn, cast

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from chiplet.errors import ConfigError


class _GenerationTag(Extension):
    """`{% generation %}` marks the model's own words for training; here it only encloses them."""

    tags = {"generation"}  # noqa: RUF012 - the library's own convention

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@lru_cache(maxsize=4)
def compile_template(source: str) -> jinja2.Template:
    """A chat template, ready to render, with the helpers that templates count on.

    Raises:
        jinja2.TemplateSyntaxError: it is wrong.
    """
    # Templates come with checkpoints from anywhere: they may look at nothing but their variables.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    filters = cast(dict[str, Callable[..., Any]], environment.filters)
    filters["tojson"] = _to_json
    helpers = cast(dict[str, Callable[..., Any]], environment.globals)
    helpers["raise_exception"] = _raise_exception
    helpers["strftime_now"] = _strftime_now
    return environment.from_string(source)


def check_template(source: str) -> None:
    """Raises ConfigError if a template's syntax is wrong."""
    try:
        compile_template(source)
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(
            f"The chat template is wrong in line {error.lineno}: {error.message}.",
            remedy="Check '--chat-template'.",
        ) from error


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own escapes HTML, which no model has seen.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
