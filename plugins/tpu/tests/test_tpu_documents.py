"""Manifest, README and notes say what the code does; nothing of a compiler is needed."""

import tomllib
from importlib.resources import files
from pathlib import Path

import pytest

from chiplet.api import INTERFACE_VERSIONS
from chiplet_tpu import plugin
from chiplet_tpu.chips import GENERATIONS

PLUGIN = Path(__file__).parents[1]
NOTES = PLUGIN.parents[1] / "benchmarks" / "tpu_notes.md"
CHIPS = {chip.name.lower(): chip for chip in GENERATIONS.values()}


def table_of(path, first_column):
    """Rows of the table that begins with a column, as lists of cells."""
    lines = path.read_text("utf-8").splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith(f"| {first_column} |"))
    rows = []
    for line in lines[begin + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([each.strip() for each in line.strip("|").split(" | ")])
    return rows


def test_the_manifest_names_every_interface_that_hooks_serve():
    manifest = tomllib.loads(files("chiplet_tpu").joinpath("chiplet_plugin.toml").read_text())
    assert manifest["kind"] == "platform"
    assert manifest["device_types"] == ["tpu"]
    served = {name for name in INTERFACE_VERSIONS if hasattr(plugin, name)}
    assert set(manifest["api"]) == served


def test_the_readme_says_of_each_part_how_far_it_was_run():
    rows = table_of(PLUGIN / "README.md", "Part")
    parts = " ".join(row[0] for row in rows)
    for name in ("jax", "torch_xla", "mesh", "pallas", "ragged", "gather", "xla", "two-level"):
        assert f"`{name}`" in parts, name
    assert all(len(row) == 4 and all(row) for row in rows)
    assert {row[3] for row in rows} <= {"no", "-"}, "nothing here has run on a TPU"


@pytest.mark.parametrize("attention", ["pallas", "ragged"])
@pytest.mark.parametrize("topology", ["v5e:2x2", "v6e:2x2", "tpu7x:2x2x1"])
def test_floors_follow_from_the_counts(topology, attention):
    chip = CHIPS[topology.partition(":")[0]]
    rows = [
        row
        for row in table_of(NOTES, "topology")
        if row[0] == topology and row[2] == f"`{attention}`"
    ]
    assert [row[1] for row in rows] == ["decode 64", "prefill 512"]
    for row in rows:
        gflop, gigabytes, floor_ms = (float(each) for each in row[7:10])
        seconds = max(
            gflop * 1e9 / (chip.bfloat16_flops / chip.cores),
            gigabytes * 1e9 / (chip.memory_bytes_per_s / chip.cores),
        )
        assert floor_ms == pytest.approx(1e3 * seconds, rel=0.02, abs=0.06)
        used, memory = (float(each) for each in row[6].split(" of "))
        assert used < memory == chip.memory_bytes / chip.cores / 2**30
        aliased, cache = row[5].split(" of ")
        assert aliased == cache
