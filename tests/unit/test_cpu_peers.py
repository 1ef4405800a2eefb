"""The benchmark beside other servers: its protocol, failures and ratios, with peers made here."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

ADAPTER = """
import os, sys, time
sys.path.insert(0, {adapters!r})
from protocol import UnsupportedError, serve

class Fake:
    def start(self, settings):
        print("libraries print this")
        self.mode = settings.extra.get("mode", "good")
        return {{"threads": settings.threads}}

    def generate(self, prompts, num_tokens):
        if self.mode == "dies": os._exit(3)
        if self.mode == "hangs": time.sleep(60)
        if self.mode == "raises": raise RuntimeError("no such kernel")
        if self.mode == "single" and len(prompts) > 1: raise UnsupportedError("one at a time")
        return len(prompts) * num_tokens - (self.mode == "short")

    def report(self): return {{"version": "1"}}

serve(Fake())
"""


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import peers.environments
    import peers.process
    import peers.rows
    import peers.table

    return peers


@pytest.fixture
def launch(peers: ModuleType, tmp_path: Path):
    script = tmp_path / "fake.py"
    script.write_text(ADAPTER.format(adapters=str(BENCHMARKS / "peers" / "adapters")))

    def make(mode: str = "good"):
        settings = {
            "model": "m",
            "threads": 2,
            "max_streams": 4,
            "max_tokens": 9,
            "extra": {"mode": mode},
        }
        command = (sys.executable, str(script))
        return peers.process.Launch(mode, command, settings, tmp_path / f"{mode}.log")

    return make


def test_a_peer_is_started_asked_frozen_and_ended(peers: ModuleType, launch) -> None:
    with peers.process.PeerProcess(launch()) as peer:
        with peer.watching_memory(0.01) as peak:
            assert peer.start(20) == {"threads": 2}
        assert peak.bytes > 1 << 20
        with peer.awake():
            assert 0 <= peer.generate([[1], [2]], 3, limit_s=20) < 1
        (member,) = peer.members()
        deadline = time.monotonic() + 10  # the system takes a moment
        while member.status() != "stopped":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with peer.awake():
            assert peer.ask({"op": "report"}, 20) == {"version": "1"}
    assert not peer.is_alive


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("dies", "ended with exit code 3: libraries print this"),
        ("hangs", "did not answer 'generate' within 0.5 s"),
        ("raises", "RuntimeError: no such kernel"),
        ("short", "gave 5 tokens instead of 6"),
    ],
)
def test_a_peers_failure_is_told(peers: ModuleType, launch, mode: str, words: str) -> None:
    with peers.process.PeerProcess(launch(mode)) as peer:
        peer.start(20)
        with pytest.raises(peers.process.PeerError, match=words):
            peer.generate([[1], [2]], 3, limit_s=0.5 if mode == "hangs" else 20)


def test_a_failed_or_missing_peer_is_a_line_and_not_the_end(
    peers: ModuleType, launch, tmp_path: Path
) -> None:
    import cpu_peers

    names = ["good", "single", "dies", "gone"]
    field = cpu_peers.Field({name: launch(name) for name in names[:3]}, {"gone": "not installed"})
    rows = [
        peers.rows.Row(
            name="many",
            title="many",
            unit="tok/s",
            groups=((2, 4),),
            measure=lambda peer, groups: 6 / peer.generate(groups[0], 3, limit_s=20),
        )
    ]
    options = argparse.Namespace(seed=1, rounds=2, hold=False, peers=names)
    (found,), costs = cpu_peers.play(options, field, rows, tmp_path)
    assert costs is None
    assert len(found.figures("good")) == 2
    assert found.failures["single"] == "one at a time"
    assert "exit code 3" in found.failures["dies"]
    assert found.failures["gone"] == "not installed"
    text = "\n".join(
        peers.table.lines(found.as_dict(names, dict.fromkeys(names, True), None), rows[0])
    )
    assert text.count("NOT MEASURED") == 3


def test_ratios_are_medians_within_rounds(peers: ModuleType) -> None:
    rows = {row.name: row for row in peers.rows.ROWS}
    rounds = [{"chiplet-x": 10.0, "b": 5.0}, {"chiplet-x": 30.0, "b": 10.0}, {"b": 1.0}]
    assert peers.table.Findings(rows["decode"], rounds).ratio("chiplet-x", "b") == 2.5
    assert peers.table.Findings(rows["start"], rounds).ratio("chiplet-x", "b") == pytest.approx(
        (0.5 + 1 / 3) / 2
    )


def test_limits_follow_from_the_costs(peers: ModuleType) -> None:
    costs = peers.rows.Costs(
        read_bytes=1000.0,
        bf16_flops=2e6,
        int8_ops=4e6,
        layer_weights=100,
        head_weights=25,
        file_weight_bytes=50,
    )
    rows = {row.name: row for row in peers.rows.ROWS}
    assert rows["decode"].limit(costs, "file") == 20
    assert rows["decode"].limit(costs, "int8") == 8
    assert rows["decode"].limit(costs, "bfloat16") == 4
    assert rows["prefill"].limit(costs, "bfloat16") == pytest.approx(2e6 / 200)
    # A stream of 128 in and 128 out: 256 tokens through the layers, 128 through the head.
    assert rows["streams-8"].limit(costs, "file") == pytest.approx(4e6 / (2 * (2 * 100 + 25)))


def test_prompts_are_fresh_and_share_what_they_must(peers: ModuleType) -> None:
    source = peers.rows.Prompts(3)
    row = next(row for row in peers.rows.ROWS if row.name == "prefix")
    (first,), (second,) = row.prompts(source), row.prompts(source)
    assert len({tuple(prompt[:1024]) for prompt in first}) == 1
    assert len({tuple(prompt) for prompt in first}) == 32
    assert first[0][:1024] != second[0][:1024]


def test_the_registry_names_adapters_and_environments_that_exist(
    peers: ModuleType, tmp_path: Path
) -> None:
    registry = peers.environments.read_registry()
    for peer in registry.peers.values():
        assert (peers.environments.ADAPTERS / peer.adapter).is_file()
    file = tmp_path / "peers.toml"
    file.write_text(
        '[environments.e]\nsteps = [["p"]]\n'
        '[peers.a]\nadapter = "a.py"\nenvironment = "f"\nmodel = "file"\n'
    )
    with pytest.raises(ValueError, match="peer 'a' wants environment 'f'; known: e"):
        peers.environments.read_registry(file)


def test_an_environment_is_known_only_by_what_it_was_made_from(
    peers: ModuleType, tmp_path: Path
) -> None:
    module = peers.environments
    old = module.Environment("e", (("p==1",),))
    new = module.Environment("e", (("p==2",),))
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "made-from").write_text(old.digest)
    assert module.interpreter(old, tmp_path) == tmp_path / "e" / "bin" / "python"
    assert module.interpreter(new, tmp_path) is None
