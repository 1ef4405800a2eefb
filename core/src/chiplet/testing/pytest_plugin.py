"""The kit in pytest: a test that takes `conformance` becomes one test for each case.

    @pytest.mark.conformance(device="cpu", provider="acme", quick=True)
    def test_conformance(conformance):
        conformance.check()

Nothing of the kit is imported unless such a test is there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from chiplet.testing.conformance.case import Case, Subject

_FIXTURE = "conformance"
_ALLOWED = ("device", "provider", "quick", "plugins")


@dataclass(frozen=True, slots=True)
class ConformanceCheck:
    """One case with one subject."""

    case: Case
    subject: Subject

    def check(self) -> None:
        """Run the case; a refusal or a missing requirement skips the test, with the reason.

        Raises:
            AssertionError: the provider is wrong.
        """
        from chiplet.testing.conformance.case import Refused, Skipped  # noqa: PLC0415

        try:
            self.case.check(self.subject)
        except (Refused, Skipped) as reason:
            pytest.skip(f"{type(reason).__name__.lower()}: {reason}")


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line(
        "markers", "conformance(device, provider, quick, plugins): cases that `conformance` runs"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each case and subject."""
    if _FIXTURE not in metafunc.fixturenames:
        return
    # Here, because every run of pytest loads this module and few need a tensor library.
    from chiplet.config import DeviceOptions  # noqa: PLC0415
    from chiplet.plugins import discover  # noqa: PLC0415
    from chiplet.testing.conformance.suite import all_cases, find_subjects, pair  # noqa: PLC0415

    marker = metafunc.definition.get_closest_marker(_FIXTURE)
    wishes = dict(marker.kwargs) if marker is not None else {}
    unknown = sorted(wishes.keys() - set(_ALLOWED))
    if unknown:
        raise pytest.UsageError(
            f"marker conformance takes {', '.join(_ALLOWED)}, and not '{unknown[0]}'"
        )
    options = DeviceOptions(device=wishes.get("device"), plugins=tuple(wishes.get("plugins", ())))
    plugins = discover(options)
    metafunc.config.add_cleanup(plugins.shut_down)
    subjects = find_subjects(options, wishes.get("provider"), plugins)
    pairs = list(pair(all_cases(quick=bool(wishes.get("quick"))), subjects))
    metafunc.parametrize(
        _FIXTURE,
        [ConformanceCheck(case, subject) for case, subject in pairs],
        ids=[f"{subject.name}-{case.id}" for case, subject in pairs],
    )
