from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def install(project: Path, target: Path, work: Path) -> None:
    """Install one project and nothing else into a folder; the source stays as it is."""
    copy = work / project.name
    leftovers = shutil.ignore_patterns("build", "*.egg-info", "__pycache__")
    shutil.copytree(project, copy, ignore=leftovers)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    flags = ["--no-deps", "--no-build-isolation", "--target", str(target)]
    subprocess.run([*pip, *flags, str(copy)], check=True)


@pytest.fixture(scope="session")
def fake_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with chiplet-fake installed, for an import path."""
    folder = tmp_path_factory.mktemp("fake")
    install(EXAMPLES / "chiplet-fake", folder / "site", folder)
    return folder / "site"
