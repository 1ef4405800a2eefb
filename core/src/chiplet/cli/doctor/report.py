"""How findings are worded."""

from __future__ import annotations

from chiplet.api import Check, CheckStatus
from chiplet.errors import ConfigError


def ok(name: str, detail: str) -> Check:
    """All is well."""
    return Check(name, CheckStatus.OK, detail)


def warning(name: str, detail: str, remedy: str) -> Check:
    """It works, and not as it should."""
    return Check(name, CheckStatus.WARNING, detail, remedy)


def fault(name: str, detail: str, remedy: str) -> Check:
    """It does not work."""
    return Check(name, CheckStatus.PROBLEM, detail, remedy)


def problem(name: str, error: ConfigError) -> Check:
    """What a start would say."""
    remedy = error.remedy or "Correct the setting, the file or the installation that it names."
    return fault(name, error.problem, " ".join(remedy.split()))
