"""Proposals: settings that plugins suggest for a device, checked and applied."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import fields, is_dataclass

from chiplet.api import DeviceProbe, EngineConfig, Proposal
from chiplet.errors import ConfigError, PluginError
from chiplet.plugins.plugin_set import Plugin, PluginSet

logger = logging.getLogger(__name__)


def apply_proposals(
    config: EngineConfig, plugin_set: PluginSet, device: DeviceProbe
) -> EngineConfig:
    """The configuration with what plugins propose; a value that the user gave stands.

    Raises:
        ConfigError: two plugins propose different values for one setting.
        PluginError: a plugin proposes a setting that does not exist, or its hook raises.
    """
    accepted: dict[str, tuple[Plugin, Proposal]] = {}
    for plugin, proposal in _proposals(config, plugin_set, device):
        if proposal.path in config.explicit:
            continue
        other = accepted.setdefault(proposal.path, (plugin, proposal))
        if other[1].value != proposal.value:
            raise ConfigError(
                f"Plugins disagree on {proposal.path}: {other[0].distribution} proposes "
                f"{other[1].value!r}, {plugin.distribution} proposes {proposal.value!r}.",
                remedy="Give the setting yourself, or pass --no-plugin for one of them.",
            )
    for path, (plugin, proposal) in accepted.items():
        logger.info(
            "%s = %r, proposed by %s: %s",
            path,
            proposal.value,
            plugin.distribution,
            proposal.reason,
        )
        config = config.replacing(path, proposal.value)
    return config


def _proposals(
    config: EngineConfig, plugin_set: PluginSet, device: DeviceProbe
) -> Iterator[tuple[Plugin, Proposal]]:
    for plugin in plugin_set.loaded:
        try:
            proposals = plugin.call("config_proposals", config=config, device=device) or ()
        except Exception as error:
            raise PluginError(
                f"Hook config_proposals of {plugin.distribution} raised "
                f"{type(error).__name__}: {error}.",
                remedy=f"Pass --no-plugin {plugin.distribution}, or report it to its author.",
            ) from error
        for proposal in proposals:
            if not _is_setting(config, proposal.path):
                raise PluginError(
                    f"{plugin.distribution} proposes '{proposal.path}', which is no setting.",
                    remedy=f"Pass --no-plugin {plugin.distribution}, or update it.",
                )
            yield plugin, proposal


def _is_setting(config: EngineConfig, path: str) -> bool:
    group_name, _, name = path.partition(".")
    group = getattr(config, group_name, None)
    if not is_dataclass(group):
        return False
    return any(each.name == name for each in fields(group))
