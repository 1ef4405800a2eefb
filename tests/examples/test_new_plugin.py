"""A project as `chiplet plugin new` writes it passes conformance, in a virtual environment."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import time
import venv
from pathlib import Path

import pytest

GREEN_WITHIN_S = 300.0
"""From the command to green tests on two cores, the installation of torch apart."""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh virtual environment that sees what is installed here; its interpreter."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    # `addsitedir`, since editable installations stand in .pth files of their own.
    outer = sysconfig.get_path("purelib")
    (site / "outer.pth").write_text(f"import site; site.addsitedir({outer!r})\n")
    return folder / "bin" / "python"


def run(*command: str | Path, folder: Path) -> str:
    done = subprocess.run(
        [*map(str, command)],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def green(python: Path, kind: str, folder: Path) -> float:
    """Seconds from nothing to green tests, a report and a badge."""
    start = time.perf_counter()
    name = f"kit-{kind}"
    run(python, "-m", "chiplet.cli", "plugin", "new", name, "--kind", kind, folder=folder)
    project = folder / name
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    run(*pip, "install", "--no-deps", "--no-build-isolation", "-e", ".", folder=project)
    told = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", folder=project)
    seconds = time.perf_counter() - start
    assert " passed" in told
    assert "failed" not in told
    wanted = ["--device", name] if kind == "platform" else ["--provider", name]
    device = [] if kind == "platform" else ["--device", "reference"]
    report = ["--quick", "--json", "conformance.json"]
    if kind == "ops":  # the same for all kinds, and the shortest here
        command = [python, "-m", "chiplet.cli", "conformance", *device, *wanted, *report]
        run(*command, folder=project)
        run(python, "tools/badge.py", "conformance.json", "conformance.svg", folder=project)
        assert "passed</text>" in (project / "conformance.svg").read_text("utf-8")
    print(f"{kind}: from template to green in {seconds:.0f} s")
    return seconds


def test_operations_are_green(environment: Path, tmp_path: Path) -> None:
    assert green(environment, "ops", tmp_path) < GREEN_WITHIN_S


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["attention", "linear", "communication", "platform"])
def test_the_others_are_green(environment: Path, kind: str, tmp_path: Path) -> None:
    assert green(environment, kind, tmp_path) < GREEN_WITHIN_S
