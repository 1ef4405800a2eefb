"""XLA on the processor, with four devices of it, and programs compiled in a hurry."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "4")


def pytest_configure(config):
    # pytest sets filters anew for each test; these are those of the compiler itself.
    for message in ("Explicitly requested dtype", "The given NumPy array is not writable"):
        config.addinivalue_line("filterwarnings", f"ignore:{message}")


def pytest_collection_modifyitems(config, items):
    """A worker takes a file, whose tests share engines; of whole compilations, one topology."""
    if not config.pluginmanager.hasplugin("xdist"):
        return
    for item in items:
        if item.path.parent == Path(__file__).parent:
            topology = item.callspec.params.get("topology", "") if hasattr(item, "callspec") else ""
            item.add_marker(pytest.mark.xdist_group(f"{item.path.stem}{topology}"))
