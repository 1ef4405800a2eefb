"""What people wrote holds: links lead somewhere, commands exist, code runs."""

from __future__ import annotations

import ast
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from chiplet.cli.main import load_command
from chiplet.cli.parsing import parse
from chiplet.cli.serve import COMMAND as SERVE

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("examples/*/README.md")]
)
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text("utf-8"), re.DOTALL)


def anchors(path: Path) -> set[str]:
    headings = HEADING.findall(path.read_text("utf-8"))
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text("utf-8")):
        assert "://" not in target, "pages link within the repository"
        name, _, anchor = target.partition("#")
        other = (path.parent / name).resolve() if name else path
        assert other.exists(), target
        assert not anchor or anchor in anchors(other), target


def test_every_page_is_reached_from_the_index() -> None:
    seen: set[Path] = set()
    waiting = [ROOT / "README.md", ROOT / "docs" / "index.md"]
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        targets = re.findall(r"\]\(([^)#]+\.md)", path.read_text("utf-8"))
        waiting += [(path.parent / target).resolve() for target in targets]
    decisions = set((ROOT / "docs" / "decisions").iterdir())
    assert set(PAGES) - decisions - seen == set()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_are_what_the_command_line_takes(path: Path) -> None:
    for block in blocks(path, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith(("chiplet ", ".venv/bin/chiplet ")):
                words = shlex.split(line, comments=True)[1:]
                name = " ".join(words[:2] if words[0] in ("bench", "plugin") else words[:1])
                given = parse(load_command(name), words[len(name.split()) :])
                assert given.command_line[: len(name.split()) + 1] == ("chiplet", *name.split())
            elif line.startswith("make "):
                target = line.split()[1]
                assert f"\n{target}:" in (ROOT / "Makefile").read_text("utf-8")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_data_is_well_formed(path: Path, tmp_path: Path) -> None:
    for block in blocks(path, "json"):
        assert all(isinstance(json.loads(line), dict) for line in block.splitlines())
    for block in blocks(path, "yaml"):
        assert yaml.safe_load(block)
        file = tmp_path / "config.yaml"
        file.write_text(block)
        assert parse(SERVE, ["--config", str(file)]).values


@pytest.mark.parametrize(
    "path",
    [path for path in PAGES if "reference" not in path.parts and path.name != "plugins.md"],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_python_parses(path: Path) -> None:
    for block in blocks(path, "python"):
        assert ast.parse(block).body


def test_layers_of_the_architecture_page_are_the_contract() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    drawn = page.partition("`make check` enforces it.")[2].split("```")[1]
    settings = (ROOT / "pyproject.toml").read_text("utf-8")
    layers = re.findall(r'"(.+)",', settings.partition("layers = [")[2].partition("]")[0])
    assert drawn.removeprefix("text").split("\n")[1:-1] == layers
