"""What a plugin is told before it is used, and when it is used no more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from chiplet.api.platform import HostFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginContext:
    """What hooks `configure` and `shutdown` are given.

    Attributes:
        options: what the user gave with `--plugin-option`, by key; only keys that this plugin's
            manifest declares, and none that was not given. Plugins of one distribution that
            declare the same key are all given it.
        cache_folder: where the plugin may keep files between starts, for itself alone. It need
            not exist; several processes may use it at once.
        host: what core knows of the host.
    """

    options: Mapping[str, str]
    cache_folder: Path
    host: HostFacts
