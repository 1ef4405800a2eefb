"""Life of a plugin in a process: told its options before its first use, and the end after its last.

Hooks that run here may hang like any other code of a vendor, so each has a thread of its own and a
time limit. A thread that hangs is left behind; it does not keep the process from ending.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from threading import Thread

import platformdirs
import pluggy

from chiplet.api import HostFacts, PluginContext
from chiplet.config import did_you_mean
from chiplet.errors import ConfigError, PluginError
from chiplet.plugins.isolation import FAULTS
from chiplet.plugins.manifest import Manifest, ManifestError, normalized

logger = logging.getLogger(__name__)

CONFIGURE_LIMIT_S = 10.0
SHUTDOWN_LIMIT_S = 5.0
LATE_SHUTDOWN_LIMIT_S = 0.5
"""For plugins that are told the end after one that hung: a server does not wait for all of them."""


Told = tuple[str, pluggy.HookRelay, PluginContext]
"""A plugin whose `configure` returned: its distribution, hooks, and what it was given."""


class Hung(Exception):
    """A hook has not returned within its time limit."""


def read_options(texts: Sequence[str]) -> Mapping[str, Mapping[str, str]]:
    """Options by normalized distribution and key, from texts like 'acme.memory=2'.

    Raises:
        ConfigError: a text is written otherwise, or says another value for the same key.
    """
    found: dict[str, dict[str, str]] = {}
    for text in texts:
        place, has_value, value = text.partition("=")
        distribution, _, key = place.rpartition(".")
        if not (distribution and key and has_value):
            raise ConfigError(
                f"plugin-option is '{text}'; allowed: a distribution, a key and a value.",
                remedy="Write it like 'chiplet-acme.memory=2'.",
            )
        other = found.setdefault(normalized(distribution), {}).setdefault(key, value)
        if other != value:
            raise ConfigError(
                f"plugin-option gives {place} twice: '{other}' and '{value}'.",
                remedy="Give it once.",
            )
    return found


def check_options(
    distribution: str, manifests: Iterable[Manifest], options: Mapping[str, str]
) -> None:
    """Refuse an option that no plugin of a distribution declares in its manifest.

    Raises:
        PluginError: there is one.
    """
    known = tuple(dict.fromkeys(key for each in manifests for key in each.options))
    for key in options:
        if key not in known:
            hint = did_you_mean(key, known) or "Leave it out."
            raise PluginError(
                f"Plugin {distribution} has no option '{key}'.",
                remedy=hint if known else "It takes none: leave it out.",
            )


def make_context(
    place: Path, manifest: Manifest, options: Mapping[str, str], host: HostFacts
) -> PluginContext:
    """What a plugin is told: of its distribution's options, those that it declares.

    Args:
        place: distribution and entry point, of which no two plugins have the same.
    """
    mine = {key: value for key, value in options.items() if key in manifest.options}
    folder = platformdirs.user_cache_path("chiplet") / "plugins" / place
    return PluginContext(options=mine, cache_folder=folder, host=host)


def configure(hooks: pluggy.HookRelay, context: PluginContext) -> None:
    """Tell a plugin its options, if it wants to know.

    Raises:
        ManifestError: its hook raised or hung, with what happened.
    """
    if not hooks.configure.get_hookimpls():
        return
    try:
        call_within(CONFIGURE_LIMIT_S, lambda: hooks.configure(context=context))
    except FAULTS as error:
        raise ManifestError(_told("configure", error)) from error


def shut_down(told: Iterable[Told]) -> None:
    """Tell plugins, one after the other, that they are used no more.

    A failure is a line in the log. Blocks for `SHUTDOWN_LIMIT_S` for the first one that hangs,
    for `LATE_SHUTDOWN_LIMIT_S` for each further one.
    """
    limit_s = SHUTDOWN_LIMIT_S
    for distribution, hooks, context in told:
        if not hooks.shutdown.get_hookimpls():
            continue
        try:
            call_within(limit_s, partial(hooks.shutdown, context=context))
        except FAULTS as error:
            logger.warning("Plugin %s: %s.", distribution, _told("shutdown", error))
            if isinstance(error, Hung):
                limit_s = LATE_SHUTDOWN_LIMIT_S


def call_within(time_limit_s: float, function: Callable[[], object]) -> None:
    """Call a function that may hang, in a thread of its own.

    Raises:
        Hung: it has not returned in time.
        BaseException: whatever it raised.
    """
    raised: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:
            raised.append(error)

    thread = Thread(target=run, name="plugin hook", daemon=True)
    thread.start()
    thread.join(time_limit_s)
    if thread.is_alive():
        raise Hung(f"no answer within {time_limit_s:g} s")
    if raised:
        raise raised[0]


def _told(hook: str, error: BaseException) -> str:
    if isinstance(error, Hung):
        return f"hook {hook} gave {error}"
    return f"hook {hook} raised {type(error).__name__}: {error}"
