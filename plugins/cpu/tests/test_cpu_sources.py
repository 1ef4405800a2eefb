"""A library that is older than the sources beside it is not called."""

import logging
import shutil
from types import SimpleNamespace

import pytest

from chiplet.api import CheckStatus, DeviceProbe
from chiplet_cpu import checks, native, sources
from chiplet_cpu.platform import CpuPlatform

PROBE = DeviceProbe(device_type="cpu", index=0, name="A CPU", total_memory_bytes=1)


@pytest.fixture
def kernels(tmp_path):
    """A copy of the kernels' sources in a tree of the same shape."""
    if sources.digest_of(sources.KERNELS) is None:
        pytest.skip("no sources beside the package")
    folder = tmp_path / "src/chiplet_cpu/kernels"
    shutil.copytree(sources.KERNELS, folder)
    shutil.copy(sources.KERNELS.parents[2] / "CMakeLists.txt", tmp_path)
    return folder


def test_the_build_computes_the_same_digest(kernels):
    if not native.is_available():
        pytest.skip(native.explanation())
    assert native.library.sources() == sources.digest_of(kernels)
    assert not sources.is_stale(native.library, kernels)


@pytest.mark.parametrize("change", ["edited", "added", "removed", "other flags"])
def test_any_change_makes_a_library_stale(kernels, change):
    digest = sources.digest_of(kernels)
    library = SimpleNamespace(sources=lambda: digest)
    assert not sources.is_stale(library, kernels)
    target = kernels.parents[2] / "CMakeLists.txt" if change == "other flags" else kernels / "vec.h"
    if change == "added":
        (kernels / "more.h").write_text("")
    elif change == "removed":
        target.unlink()
    else:
        target.write_text(target.read_text() + "// more\n")
    assert sources.is_stale(library, kernels)


def test_a_library_that_says_nothing_is_stale(kernels):
    assert sources.is_stale(SimpleNamespace(), kernels)


def test_a_wheel_has_no_sources_to_compare(tmp_path):
    assert sources.digest_of(tmp_path) is None
    assert not sources.is_stale(SimpleNamespace(sources=lambda: "of another day"), tmp_path)


def test_a_stale_library_is_refused_with_a_remedy(monkeypatch, caplog):
    monkeypatch.setattr(native, "is_stale", lambda library: True)
    monkeypatch.setattr(native.importlib, "import_module", lambda name: SimpleNamespace())
    library, reason, remedy = native._load()
    assert library is None
    for name, value in (("library", None), ("reason", reason), ("_remedy", remedy)):
        monkeypatch.setattr(native, name, value)
    found = {each.name: each for each in checks.run_checks(PROBE)}["cpu kernels"]
    assert found.status is CheckStatus.WARNING
    assert "other sources" in found.detail
    assert "pip install" in found.remedy
    with caplog.at_level(logging.WARNING):
        CpuPlatform(PROBE).activate()
    assert "pip install" in caplog.text
    assert "other sources" in caplog.text
