"""`chiplet plugin new` writes what is asked for, and nothing over what is there."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

from chiplet.cli.main import main
from chiplet.cli.plugin.new import KINDS, rendered
from chiplet.plugins.manifest import check_api, parse_manifest


@pytest.mark.parametrize("kind", KINDS)
def test_files_are_well_formed(kind: str) -> None:
    files = rendered("chiplet-my-accel", kind)
    for path, text in files.items():
        assert "<<" not in path + text
        if path.endswith(".py"):
            assert ast.parse(text)
            assert max(map(len, text.splitlines()), default=0) <= 100
    manifest = parse_manifest(tomllib.loads(files["src/chiplet_my_accel/chiplet_plugin.toml"]))
    check_api(manifest)
    project = tomllib.loads(files["pyproject.toml"])["project"]
    assert project["entry-points"]["chiplet.plugins"] == {"my-accel": "chiplet_my_accel.plugin"}
    assert {".gitignore", ".github/workflows/ci.yml", "README.md"} <= set(files)


def test_it_says_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugin", "new", "acme", "--kind", "linear", "--into", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [each.split()[0] for each in lines[-3:]] == ["cd", "pip", "pytest"]
    assert (tmp_path / "acme" / "src" / "acme" / "linear.py").is_file()


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "acme").mkdir()
    assert main(["plugin", "new", "acme", "--kind", "ops", "--into", str(tmp_path)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert list((tmp_path / "acme").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Acme", "no name for a plugin"),
        ("acme_x", "no name for a plugin"),
        ("../acme", "no name for a plugin"),
        ("acme-", "no name for a plugin"),
        ("class", "no name for a plugin"),
        ("json", "hide the module"),
        ("chiplet", "hide the module"),
    ],
)
def test_names_are_checked(
    name: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plugin", "new", name, "--kind", "ops", "--into", str(tmp_path)]) == 2
    assert reason in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_name_and_kind_must_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugin", "new"]) == 2
    assert "no name" in capsys.readouterr().err
    assert main(["plugin", "new", "acme"]) == 2
    assert "no --kind" in capsys.readouterr().err
    assert main(["plugin", "new", "acme", "--kind", "gpu"]) == 2
    assert "attention, linear" in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    into = str(tmp_path / "nowhere")
    assert main(["plugin", "new", "acme", "--kind", "ops", "--into", into]) == 2
    assert "nowhere" in capsys.readouterr().err
