"""Registry: from the word that `--quantization` takes to the format of that name."""

from __future__ import annotations

from collections.abc import Sequence

from chiplet.api import QuantizationFormat
from chiplet.errors import ConfigError
from chiplet.formats.quantization.head import WithHead

NONE = "none"
"""Weights stay as the checkpoint's numbers are."""


def find_format(formats: Sequence[QuantizationFormat], name: str) -> QuantizationFormat | None:
    """The format of a name, the last that has it; None for 'none'.

    Raises:
        ConfigError: no format has the name.
    """
    if name == NONE:
        return None
    for each in reversed(formats):
        if each.name == name:
            return each
    known = ", ".join([NONE, *sorted({each.name for each in formats})])
    raise ConfigError(
        f"quantization is '{name}'; allowed: {known}.",
        remedy="Choose one of these, or install a plugin that brings it.",
    )


def formats_of(
    formats: Sequence[QuantizationFormat], *, layers: str, head: str
) -> QuantizationFormat | None:
    """The format of all layers, by the names of those for the head and for the others.

    Raises:
        ConfigError: no format has one of the names.
    """
    body, of_head = find_format(formats, layers), find_format(formats, head)
    return body if of_head is None else WithHead(body, of_head)
