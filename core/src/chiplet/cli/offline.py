"""Offline: an engine inside this process, for `generate` and `chat`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from chiplet.cli.command import Given

if TYPE_CHECKING:
    from chiplet.llm import LLM


def open_llm(given: Given) -> LLM:
    """An engine with the settings that were given; imports the tensor library.

    Logs warnings only, unless a log level was given: the terminal belongs to the answer.

    Raises:
        ConfigError: the engine cannot start with these settings.
    """
    config = given.engine_config()
    level = config.log.log_level if "log.log_level" in config.explicit else "warning"
    logging.basicConfig(level=level.upper(), format="%(levelname)s %(message)s")

    from chiplet.llm import LLM

    return LLM(config)
