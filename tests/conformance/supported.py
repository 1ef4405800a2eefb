"""What the CPU plugin's providers serve, as committed in `plugins/cpu/supported/`.

`any.json` holds what every processor has, and a file named after an instruction set what that adds.
`make supported` writes them anew on a machine that has all of the sets: what the plugin's own
kernels need a set for goes to the file of the lowest one that has it. What oneDNN needs a set for
is kept in the file where it stands, as that choice cannot be forced.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from chiplet.config import DeviceOptions
from chiplet.testing.conformance.snapshot import promised
from chiplet.testing.conformance.suite import all_cases, find_subjects
from chiplet_cpu import native

FOLDER = Path(__file__).parents[2] / "plugins/cpu/supported"
ANY = "any"


def committed() -> Mapping[str, frozenset[str]]:
    """What is committed, by instruction set; only those that this processor has."""
    names = (ANY, *native.instruction_sets())
    paths = {name: FOLDER / f"{name}.json" for name in names}
    return {
        name: frozenset(json.loads(path.read_text("utf-8")))
        for name, path in paths.items()
        if path.exists()
    }


def promised_by_set() -> Mapping[str, frozenset[str]]:
    """What the providers say that they serve, with kernels limited to each set in turn."""
    subjects = [
        each
        for each in find_subjects(DeviceOptions(device="cpu"))
        if each.distribution == "chiplet-cpu"
    ]
    cases, before = all_cases(), native.instruction_set()
    found: dict[str, frozenset[str]] = {}
    try:
        for name in native.instruction_sets():
            native.use_instruction_set(name)
            found[name] = frozenset(promised(cases, subjects))
    finally:
        native.use_instruction_set(before)
    return found


def main() -> None:
    """Write the files anew."""
    by_set, before = promised_by_set(), committed()
    files: dict[str, set[str]] = {}
    for key in frozenset().union(*by_set.values()):
        lowest = next(name for name, keys in by_set.items() if key in keys)
        new_place = ANY if lowest == native.instruction_sets()[0] else lowest
        place = next((name for name, keys in before.items() if key in keys), new_place)
        files.setdefault(place, set()).add(key)
    for name in {*files, *before}:
        path = FOLDER / f"{name}.json"
        path.write_text(json.dumps(sorted(files.get(name, ())), indent=0) + "\n", "utf-8")
        print(f"{path}: {len(files.get(name, ()))} requests")


if __name__ == "__main__":
    main()
