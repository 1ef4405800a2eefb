"""Isolation: what code from outside may raise, and which of its answers are taken."""

from __future__ import annotations

from typing import Any

from chiplet.api import No, Part, Reason, Verdict, Yes

FAULTS = (Exception, SystemExit)
"""What a plugin's code may raise and nobody else is to die of. `SystemExit` is among it: libraries
that were written for a command line leave with it."""


def fault_of_provider(provider: Any) -> str:
    """What keeps a provider from being asked, or an empty text."""
    name, accepts = provider.name, provider.accepts
    if not (isinstance(name, str) and name.isprintable() and name):
        return f"a provider's name is {name!r}; it must be a word"
    if any(each.isspace() or each in "=," for each in name):
        return f"a provider's name is '{name}'; --use takes words without blanks, '=' and ','"
    if not (isinstance(accepts, frozenset) and all(isinstance(each, str) for each in accepts)):
        return f"provider {name} accepts {accepts!r}; it must be a frozenset of features"
    return ""


def fault_of_verdict(verdict: Verdict) -> str:
    """What keeps a verdict from being taken, or an empty text."""
    texts: list[object]
    match verdict:
        case Yes(score=score, note=note, part=part):
            # What a type checker of the plugin's author would have said; nobody ran one.
            if not isinstance(score, int):  # pyright: ignore[reportUnnecessaryIsInstance]
                return f"a score is {score!r}; it must be a whole number"
            if not isinstance(part, Part):  # pyright: ignore[reportUnnecessaryIsInstance]
                return f"a part is {part!r}; it must be a Part"
            texts = [note]
        case No(reasons=reasons):
            wrong = [each for each in reasons if not isinstance(each, Reason)]  # pyright: ignore[reportUnnecessaryIsInstance]
            if wrong:
                return f"a reason is {wrong[0]!r}; it must be a Reason"
            texts = [text for each in reasons for text in (each.code, each.text, each.hint)]
    return next((f"a text is {each!r}" for each in texts if not is_text(each)), "")


def is_text(value: object) -> bool:
    """Whether something is text that can be written down anywhere."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
