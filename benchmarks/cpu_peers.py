"""Chiplet beside other servers on this machine's processor: the same fresh prompts, in turns.

    python benchmarks/peers/environments.py                  # once: the peers' environments
    python benchmarks/cpu_peers.py [--rows decode prefill] [--peers chiplet-q4 llama-cpp]

Peers take turns within a round, each with the prompts of that round, and are frozen (SIGSTOP) when
it is not their turn. Ratios are taken within a round; the table shows their medians. The machine's
own limits are measured in every round, and the best of them counts. A peer that is missing, fails
or cannot do a row is said, and does not end the run. peers/README.md tells how to add one.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
from peers.environments import ADAPTERS, DEFAULT_CACHE, Registry, interpreter, model_folder
from peers.environments import read_registry as read_peers
from peers.process import Launch, PeerError, PeerProcess, PeerUnsupportedError
from peers.rows import LOAD_LIMIT_S, ROWS, WORK_LIMIT_S, Costs, Prompts, Row
from peers.table import Findings, lines

from chiplet.cli.bench.machine import describe_machine
from chiplet.formats.catalogue import resolve_model

MAX_STREAMS = 64
MAX_TOKENS = 40_000
LIMITS = "limits"
MAX_DISTURBANCE = 0.1
"""Share of the cores that others may use while a figure is taken."""

MAX_REPEATS = 2


@dataclass(slots=True)
class Field:
    """Who takes part, and whose process is alive.

    Attributes:
        launches: how each peer is started; those that cannot take part are not there.
        absent: why a peer does not take part.
        alive: started processes that stay for many rows, frozen.
    """

    launches: dict[str, Launch]
    absent: dict[str, str]
    alive: dict[str, PeerProcess] = field(default_factory=dict[str, PeerProcess])

    def start_all(self, stack: ExitStack) -> None:
        """Start every peer, one after another, and freeze it."""
        for name, launch in self.launches.items():
            say(f"starting {name}")
            peer = stack.enter_context(PeerProcess(launch))
            try:
                with peer.awake():
                    peer.start(LOAD_LIMIT_S)
                self.alive[name] = peer
            except PeerError as error:
                self.absent[name] = str(error)

    def measure(
        self, name: str, row: Row, groups: Sequence[Sequence[list[int]]]
    ) -> tuple[float, float]:
        """One peer's figure, and what share of the cores others used meanwhile.

        Raises:
            PeerError: it failed; if it is dead it will be absent from now on.
            PeerUnsupportedError: it cannot do this.
        """
        if name in self.absent:
            raise PeerError(self.absent[name])
        if row.is_fresh:
            with PeerProcess(self.launches[name]) as peer:
                return observed(peer, lambda: row.measure(peer, groups))
        peer = self.alive[name]
        try:
            with peer.awake():
                return observed(peer, lambda: row.measure(peer, groups))
        except PeerError as error:
            if not peer.is_alive:
                self.absent[name] = f"ended before: {error}"
            raise


def observed(peer: PeerProcess, work: Callable[[], float]) -> tuple[float, float]:
    """What `work` gives, and the share of all cores that others than the peer used meanwhile."""
    start_s, busy_s, peer_s = time.perf_counter(), busy_cpu_s(), peer.cpu_s()
    figure = work()
    elapsed_s = time.perf_counter() - start_s
    others_s = (busy_cpu_s() - busy_s) - (peer.cpu_s() - peer_s)
    return figure, max(0.0, others_s) / elapsed_s / psutil.cpu_count()


def busy_cpu_s() -> float:
    """CPU time that this machine has spent on anything, what its host took away included."""
    times = psutil.cpu_times()
    return sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)


def say(text: str) -> None:
    print(f"... {text}", file=sys.stderr, flush=True)


def gather(options: argparse.Namespace, registry: Registry, logs: Path) -> Field:
    """The peers that can take part, and why others cannot."""
    file = Path(resolve_model(options.model))
    models = {"file": file, "folder": model_folder(file, options.cache)}
    launches: dict[str, Launch] = {}
    absent: dict[str, str] = {}
    for name in options.peers:
        entry = registry.peers[name]
        python = interpreter(registry.environments[entry.environment], options.cache)
        model = models[entry.model]
        if python is None or model is None:
            missing = "environment" if python is None else "model folder"
            absent[name] = f"its {missing} is missing: python benchmarks/peers/environments.py"
            continue
        settings = {
            "model": str(model),
            "threads": options.threads,
            "max_streams": MAX_STREAMS,
            "max_tokens": MAX_TOKENS,
            "extra": dict(entry.extra),
        }
        command = (str(python), str(ADAPTERS / entry.adapter))
        launches[name] = Launch(name, command, settings, logs / f"{name}.log")
    return Field(launches, absent)


def limits_process(options: argparse.Namespace, logs: Path) -> PeerProcess:
    settings = {
        "model": str(resolve_model(options.model)),
        "threads": options.threads,
        "max_streams": 1,
        "max_tokens": 1,
        "extra": {},
    }
    command = (sys.executable, str(ADAPTERS / "peer_limits.py"))
    return PeerProcess(Launch(LIMITS, command, settings, logs / f"{LIMITS}.log"))


def measure_limits(process: PeerProcess, before: Costs | None) -> Costs:
    """The best rates so far."""
    with process.awake():
        now = process.ask({"op": "report"}, WORK_LIMIT_S)
    if before is not None:
        now = {name: max(value, getattr(before, name)) for name, value in now.items()}
    return Costs(**now)


def warm_up(field: Field, rows: Sequence[Row], source: Prompts) -> None:
    """Let every peer do each row's first prompts once, for a token or two; nothing is timed."""
    for name, peer in field.alive.items():
        say(f"warming up {name}")
        for row in rows:
            try:
                with peer.awake():
                    for group in row.prompts(source):
                        peer.generate(group, 2, limit_s=WORK_LIMIT_S)
            except PeerUnsupportedError:
                continue
            except PeerError as error:
                field.absent[name] = str(error)
                break


def play(
    options: argparse.Namespace, field: Field, rows: Sequence[Row], logs: Path
) -> tuple[list[Findings], Costs | None]:
    """All rounds; what was found, and the machine's limits."""
    source = Prompts(options.seed)
    findings = [Findings(row) for row in rows]
    costs: Costs | None = None
    with ExitStack() as stack:
        lasting = [row for row in rows if not row.is_fresh]
        if lasting:
            field.start_all(stack)
            warm_up(field, lasting, source)
        limits = None
        if any(row.limit is not None for row in rows):
            limits = stack.enter_context(limits_process(options, logs))
            with limits.awake():
                limits.start(LOAD_LIMIT_S)
        if options.hold:
            input("Peers are ready. Press Enter to measure. ")
        try:
            for number in range(options.rounds):
                if limits is not None:
                    costs = measure_limits(limits, costs)
                # Who was first is last in the next round.
                names = options.peers[:: -1 if number % 2 else 1]
                for found in findings:
                    play_row(field, found, names, source)
        except KeyboardInterrupt:
            say("interrupted; the table has what was measured so far")
    return findings, costs


def play_row(field: Field, found: Findings, names: Sequence[str], source: Prompts) -> None:
    """One row of one round; a figure that others disturbed is taken again, with other prompts."""
    figures: dict[str, float] = {}
    found.by_round.append(figures)
    groups, disturbance = found.row.prompts(source), 0.0
    for name in names:
        try:
            for attempt in range(1 + MAX_REPEATS):
                if attempt:
                    groups = found.row.prompts(source)
                figures[name], disturbance = field.measure(name, found.row, groups)
                say(
                    f"{found.row.name} {name}: {figures[name]:.4g} {found.row.unit}; others "
                    f"used {disturbance:.0%} of the cores"
                )
                if disturbance <= MAX_DISTURBANCE or not found.row.is_timed:
                    break
            found.disturbances.append(disturbance)
        except (PeerError, PeerUnsupportedError) as error:
            found.failures[name] = str(error)


def publish(
    options: argparse.Namespace,
    registry: Registry,
    findings: Sequence[Findings],
    costs: Costs | None,
) -> None:
    codings = {name: registry.peers[name].coding for name in options.peers}
    found = [each.as_dict(options.peers, codings, costs) for each in findings]
    machine = asdict(describe_machine())
    print(
        f"{machine['processor']}, {options.threads} threads; torch {machine['torch']}; "
        f"commit {machine['commit']}; {machine['date']}; {options.rounds} rounds, seed "
        f"{options.seed}"
    )
    if costs is not None:
        print(
            f"reads {costs.read_bytes / 1e9:.1f} GB/s; products {costs.bf16_flops / 1e12:.3f} "
            f"TFLOP/s bfloat16, {costs.int8_ops / 1e12:.3f} TOP/s int8"
        )
    for each, entry in zip(findings, found, strict=True):
        print("\n".join(lines(entry, each.row)))
    if options.json is not None:
        report: Mapping[str, Any] = {
            "benchmark": "cpu_peers",
            "command_line": sys.argv,
            "machine": machine,
            "seed": options.seed,
            "limits": None if costs is None else asdict(costs),
            "rows": found,
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n", "utf-8")


def read_options(registry: Registry) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [row.name for row in ROWS]
    peers = list(registry.peers)
    parser.add_argument(
        "--peers",
        nargs="+",
        choices=peers,
        default=peers,
        metavar="PEER",
        help=f"who takes part: {', '.join(peers)}",
    )
    parser.add_argument(
        "--rows",
        nargs="+",
        choices=names,
        default=names,
        metavar="ROW",
        help=f"what is measured: {', '.join(names)}",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--model", default="smollm2-135m", help="a GGUF file or catalogue name")
    parser.add_argument(
        "--cache", type=Path, default=DEFAULT_CACHE, help="folder of the peers' environments"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=int.from_bytes(os.urandom(4)),
        help="of the prompts; fresh at each run if not given",
    )
    parser.add_argument(
        "--hold",
        action="store_true",
        help="wait for Enter when all peers have started, before measuring",
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


def main() -> int:
    registry = read_peers()
    options = read_options(registry)
    # A time limit around this program must not cost what was measured already.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    rows = [row for row in ROWS if row.name in options.rows]
    with tempfile.TemporaryDirectory(prefix="peers-") as logs:
        field = gather(options, registry, Path(logs))
        findings, costs = play(options, field, rows, Path(logs))
    publish(options, registry, findings, costs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
