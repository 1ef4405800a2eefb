"""Examination: every check, in the order in which one thing rests on another."""

from __future__ import annotations

from chiplet.api import Check, CheckStatus
from chiplet.cli.doctor.choices import check_choices, check_plan_file
from chiplet.cli.doctor.host import Host, check_host
from chiplet.cli.doctor.installation import check_plugins, open_installation
from chiplet.cli.doctor.model import check_model
from chiplet.cli.doctor.port import check_port
from chiplet.cli.doctor.report import problem
from chiplet.config import EngineConfig, ServerOptions
from chiplet.errors import ConfigError


def examine(
    config: EngineConfig, server: ServerOptions, host: Host, *, is_port_given: bool
) -> list[Check]:
    """All findings, good and bad; never raises for what is wrong with an installation.

    Args:
        config: as a start would have it.
        server: where a server would listen.
        host: facts about the machine.
        is_port_given: the port was asked for; otherwise one in use is no more than a warning.
    """
    checks = [
        *check_host(host),
        *check_port(server, is_given=is_port_given),
        *check_plan_file(config.device),
    ]
    try:
        installation = open_installation(config.device)
    except ConfigError as error:
        return [*checks, problem("plugins", error)]
    try:
        checks += check_plugins(installation)
        checks += check_model(config, installation)
    finally:
        installation.plugins.shut_down()
    # What stops a start before anything is chosen has been said already.
    if installation.chosen is not None and not _has_problem(checks):
        checks += check_choices(config)
    return checks


def _has_problem(checks: list[Check]) -> bool:
    return any(each.status is CheckStatus.PROBLEM for each in checks)
