"""Holds the CPU plugin's own kernels against the reference on every instruction set that runs here.

    python -m tests.conformance.every_set [--quick] [SET ...]

Each set is forced by the plugin's option `isa`, as a person would, so that whole models are served
with it too. Sets beyond the processor cannot run; AMX's kernels then run on a model of the tile
registers in plain code. Prints a table for benchmarks/cpu_notes.md; the exit code is 1 if a case
failed.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter

from chiplet.config import DeviceOptions
from chiplet.plugins import discover
from chiplet.testing.conformance.case import Status
from chiplet.testing.conformance.running import Run, run_all
from chiplet.testing.conformance.suite import all_cases, find_subjects, pair
from chiplet_cpu import native

PROVIDERS = ("native", "native-int8")
MOST_SHOWN = 10


def hold(instruction_set: str, provider: str, *, quick: bool) -> Run:
    """Run the kit for one provider, alone: platform and package are looked at elsewhere."""
    options = DeviceOptions(device="cpu", plugin_option=(f"chiplet-cpu.isa={instruction_set}",))
    plugins = discover(options)
    try:
        named = [
            each
            for each in find_subjects(options, provider, plugins)
            if each.family not in ("package", "platform")
        ]
        return run_all(list(pair(all_cases(quick=quick), named)))
    finally:
        plugins.shut_down()


def main() -> int:
    """Run all; how many cases failed, at most 1."""
    assert native.is_available(), f"{native.explanation()}. {native.remedy()}"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the quick tier alone")
    known = (*native.instruction_sets(), native.TILES_MODEL)
    parser.add_argument("sets", nargs="*", help=f"of {', '.join(known)}; all if left out")
    given = parser.parse_args()
    print(f"| instruction set | provider | {' | '.join(Status)} | seconds |")
    print("|---|---|" + "---:|" * (len(Status) + 1))
    num_failed = 0
    for name in given.sets or known:
        for provider in PROVIDERS:
            start = time.perf_counter()
            done = hold(name, provider, quick=given.quick)
            counts = Counter(each.status for each in done.outcomes)
            numbers = " | ".join(str(counts[status]) for status in Status)
            print(f"| {name} | {provider} | {numbers} | {time.perf_counter() - start:.0f} |")
            failed = [each for each in done.outcomes if each.status is Status.FAILED]
            for each in failed[:MOST_SHOWN]:
                print(f"failed: {each.subject.name} {each.case.id}: {each.detail}", flush=True)
            num_failed += len(failed)
            if done.stopped:
                print(done.stopped)
                return 1
    return int(num_failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
