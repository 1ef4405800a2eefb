"""Small plugins, written to a folder as an installer would leave them."""

import importlib.metadata
import itertools
import sys
import textwrap

import pytest

from chiplet.plugins import discovery

NUMBERS = itertools.count()

PLATFORM_MANIFEST = """
name = "{name}"
kind = "platform"
device_types = ["{name}"]
[api]
platform = ">=1.0,<2"
attention = ">=1.0,<2"
linear = ">=1.0,<2"
moe = ">=1.0,<2"
ops = ">=1.0,<2"
communication = ">=1.0,<2"
compilation = ">=1.0,<2"
models = ">=1.0,<2"
quantization = ">=1.0,<2"
"""

PROVIDER_MANIFEST = """
name = "{name}"
kind = "provider"
[api]
attention = ">=1.0,<2"
linear = ">=1.0,<2"
moe = ">=1.0,<2"
ops = ">=1.0,<2"
communication = ">=1.0,<2"
compilation = ">=1.0,<2"
models = ">=1.0,<2"
quantization = ">=1.0,<2"
"""

IMPORTS = """
from chiplet.api import *
"""

PLATFORM_HOOKS = """
@hookimpl
def probe(host):
    return [
        DeviceProbe(device_type="{name}", index=i, name="{name} no. %d" % i, total_memory_bytes=1)
        for i in range(2)
    ]

@hookimpl
def platform(device):
    # Late, as in any plugin: the probe's process needs no tensor library.
    from chiplet.reference.platform import ReferencePlatform
    return ReferencePlatform()
"""


class PluginFolder:
    """A folder of installed distributions."""

    def __init__(self, path):
        self.path = path

    def add(self, name, hooks, manifest=PROVIDER_MANIFEST, version="1.2", *, part_of=None):
        """Install distribution `chiplet-NAME`; returns the distribution's name.

        With `part_of`, add an entry point to that one instead: 'one' for `chiplet-one`.
        """
        package = f"tiny_{name}_{next(NUMBERS)}"
        folder = self.path / package
        folder.mkdir()
        (folder / "__init__.py").touch()
        source = textwrap.dedent(IMPORTS) + textwrap.dedent(hooks).replace("{name}", name)
        (folder / "plugin.py").write_text(source)
        if manifest is not None:
            text = textwrap.dedent(manifest).replace("{name}", name)
            (folder / "chiplet_plugin.toml").write_text(text)
        info = self.path / f"chiplet_{part_of or name}-{version}.dist-info"
        if part_of is not None:
            with (info / "entry_points.txt").open("a") as entry_points:
                entry_points.write(f"{name} = {package}.plugin\n")
            return f"chiplet-{part_of}"
        info.mkdir()
        (info / "METADATA").write_text(f"Name: chiplet-{name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[chiplet.plugins]\n{name} = {package}.plugin\n")
        return f"chiplet-{name}"

    def add_platform(self, name, hooks=PLATFORM_HOOKS, manifest=PLATFORM_MANIFEST):
        """Install a platform plugin with two devices."""
        return self.add(name, hooks, manifest)

    def imported(self):
        """Names of plugins' modules that were imported."""
        return [name for name in sys.modules if name.startswith("tiny_") and "plugin" in name]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of plugins, and no others installed."""

    def only_here():
        return importlib.metadata.distributions(path=[str(tmp_path)])

    monkeypatch.setattr(discovery, "distributions", only_here)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield PluginFolder(tmp_path)
    for name in [name for name in sys.modules if name.startswith("tiny_")]:
        del sys.modules[name]
