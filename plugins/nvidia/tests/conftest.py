"""Without the plugin there is nothing to test."""

from importlib.util import find_spec
from pathlib import Path

HAS_PLUGIN = find_spec("chiplet_nvidia") is not None
collect_ignore = (
    [] if HAS_PLUGIN else [each.name for each in Path(__file__).parent.glob("test_*.py")]
)


def pytest_report_header():
    return None if HAS_PLUGIN else "chiplet-nvidia is not installed: no tests of it"
