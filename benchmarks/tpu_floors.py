"""What the compiler counts in steps for TPUs, and the times that a chip needs for it.

    .venv-tpu/bin/python benchmarks/tpu_floors.py [FACTS...]

Compiles Llama-3.1-8B's steps for every topology with either attention, some minutes each, and
writes the table of tpu_notes.md anew. Facts that `tests.tpu.aot_step` printed before are taken from
files instead, one or more of them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
NOTES = ROOT / "benchmarks" / "tpu_notes.md"
TOPOLOGIES = {"v5e:2x2": 0.819e12, "v6e:2x2": 1.64e12, "tpu7x:2x2x1": 7.37e12 / 2}
"""Bytes per second of one device's memory, to say how long reading everything once takes."""

ATTENTIONS = ("pallas", "ragged")
COLUMNS = (
    *("topology", "bucket", "attention", "kernels", "all-reduces", "KV aliased, GiB"),
    *("arguments and temporaries, GiB", "GFLOP", "GB moved", "floor, ms"),
    *("weights and KV once, ms", "compiled in, s"),
)
_GIB = 2**30


def compiled() -> Iterator[dict[str, Any]]:
    """Facts of every topology and attention, each from a process of its own."""
    for topology in TOPOLOGIES:
        for attention in ATTENTIONS:
            command = [sys.executable, "-m", "tests.tpu.aot_step", topology, attention]
            print(*command[1:], file=sys.stderr)
            child = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
            yield from parsed(child.stdout)


def parsed(text: str) -> Iterator[dict[str, Any]]:
    """Facts among what a process printed."""
    for line in text.splitlines():
        if line.startswith("{"):
            yield json.loads(line)


def row(facts: dict[str, Any]) -> str:
    """One line of the table."""
    needed = facts["argument_bytes"] + facts["temp_bytes"]
    once_ms = 1e3 * facts["argument_bytes"] / TOPOLOGIES[facts["topology"]]
    cells = (
        *(facts["topology"], facts["bucket"], f"`{facts['attention']}`"),
        *(facts["kernels"], facts["all_reduces"]),
        f"{facts['alias_bytes'] / _GIB:.2f} of {facts['kv_bytes'] / _GIB:.2f}",
        f"{needed / _GIB:.2f} of {facts['memory_bytes'] / _GIB:.0f}",
        f"{facts['flops'] / 1e9:.0f}",
        f"{facts['bytes'] / 1e9:.1f}",
        f"{facts['floor_ms']:.1f}",
        f"{once_ms:.1f}",
        f"{facts['seconds']:.0f}",
    )
    return f"| {' | '.join(map(str, cells))} |"


def place(facts: dict[str, Any]) -> tuple[int, int, str]:
    """Where a line stands in the table."""
    attention = ATTENTIONS.index(facts["attention"])
    return list(TOPOLOGIES).index(facts["topology"]), attention, facts["bucket"]


def main(files: list[str]) -> None:
    """Write the table into the notes."""
    given = [each for file in files for each in parsed(Path(file).read_text("utf-8"))]
    facts = sorted(given or compiled(), key=place)
    rule = "|" + "---|" * len(COLUMNS)
    table = "\n".join((f"| {' | '.join(COLUMNS)} |", rule, *map(row, facts)))
    before, _, rest = NOTES.read_text("utf-8").partition("| topology |")
    after = rest[rest.index("\n\n") :]
    NOTES.write_text(f"{before}{table}{after}", "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
