"""Proposals: settings that plugins suggest for a device, checked and applied."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from chiplet.api import DeviceProbe, EngineConfig, Proposal
from chiplet.config import GROUPS, check_option, option_fields
from chiplet.errors import ConfigError, PluginError
from chiplet.plugins.isolation import is_text
from chiplet.plugins.manifest import normalized
from chiplet.plugins.plugin_set import Plugin, PluginSet

logger = logging.getLogger(__name__)


def apply_proposals(
    config: EngineConfig, plugin_set: PluginSet, device: DeviceProbe
) -> EngineConfig:
    """The configuration with what plugins propose; a value that the user gave stands.

    Raises:
        ConfigError: two plugins propose different values for one setting.
        PluginError: a plugin that the user named proposes what is no setting or no value of it, or
            its hook raises; of another plugin that is a warning.
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
    offers = plugin_set.offers("config_proposals", Proposal, config=config, device=device)
    for plugin, proposal in offers:
        fault = _fault(proposal)
        if not fault:
            yield plugin, proposal
            continue
        text = f"{plugin.distribution} proposes '{proposal.path}', {fault}"
        if normalized(plugin.distribution) in plugin_set.explicit:
            raise PluginError(text, remedy=f"Update {plugin.distribution}, or do not ask for it.")
        logger.warning("%s The proposal is left out.", text)


def _fault(proposal: Proposal) -> str:
    """What is wrong with a proposal; empty if nothing is."""
    if not (is_text(proposal.path) and is_text(proposal.reason)):
        return "which is no setting, or has a reason that is no text."
    group_name, _, name = proposal.path.partition(".")
    group = GROUPS.get(group_name)
    if group is None or all(each != name for each, _ in option_fields(group)):
        return "which is no setting."
    try:
        check_option(group, name, proposal.value)
    except ConfigError as error:
        return f"but {error}"
    return ""
