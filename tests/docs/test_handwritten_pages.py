"""What people wrote holds: links lead somewhere, commands exist, code runs."""

from __future__ import annotations

import ast
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
import yaml

from chiplet.api import (
    BuildContext,
    DeviceProbe,
    Dtype,
    LinearRequest,
    LinearWeights,
    No,
    Yes,
)
from chiplet.cli.main import load_command
from chiplet.cli.parsing import parse
from chiplet.cli.serve import COMMAND as SERVE
from chiplet.config import DeviceOptions
from chiplet.plugins import discover

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
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


@pytest.fixture
def acme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The plugin of the manual, installed."""
    page = ROOT / "docs" / "plugins.md"
    manifest, entry_point = blocks(page, "toml")
    package = tmp_path / "acme_linear"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "chiplet_plugin.toml").write_text(manifest)
    (package / "plugin.py").write_text(blocks(page, "python")[0])
    info = tmp_path / "acme_linear-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-linear\nVersion: 1.0\n")
    group, line = entry_point.strip().splitlines()
    assert group == '[project.entry-points."chiplet.plugins"]'
    (info / "entry_points.txt").write_text(f"[chiplet.plugins]\n{line.replace(chr(34), '')}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [each for each in sys.modules if each.startswith("acme_linear")]:
        del sys.modules[name]


@pytest.mark.usefixtures("acme")
def test_the_plugin_of_the_manual_works() -> None:
    found = discover(DeviceOptions(plugins=("acme-linear",)))
    plugin = next(each for each in found.loaded if each.distribution == "acme-linear")
    device = DeviceProbe(device_type="cpu", index=0, name="test", total_memory_bytes=1)
    (provider,) = plugin.call("linear", device=device)
    request = LinearRequest(role="o_proj", in_features=3, out_features=2, dtype=Dtype.FLOAT32)
    assert isinstance(provider.assess(request), Yes)
    refused = LinearRequest(role="o_proj", in_features=3, out_features=2, dtype=Dtype.BFLOAT16)
    assert isinstance(provider.assess(refused), No)
    layer = provider.build(request, BuildContext(platform=None))
    weight, x = torch.randn(2, 3), torch.randn(4, 3)
    torch.testing.assert_close(
        layer.run(x, layer.pack(LinearWeights(scheme=None, weight=weight))), x @ weight.T
    )
