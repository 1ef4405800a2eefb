"""Ranks that are processes agree on a plan, connect, and leave out collectives that are wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.parallel.folder_meeting import FolderMeeting
from tests.unit.plugins.conftest import PluginFolder

ROOT = Path(__file__).parents[2]
CHILD = "tests.parallel.rank_process"
MANIFEST = """
name = "{name}"
kind = "provider"
[api]
communication = ">=0.1,<2"
ops = ">=0.1,<2"
"""

NORM = """
class Norm:
    name = "{name}"
    accepts = frozenset(Feature)
    def assess(self, request):
        return Yes(Tier.VENDOR)
    def build(self, request, context):
        return context.reference(request)

@hookimpl
def ops(device):
    return [Norm()]
"""

GROUPS = """
class Group:
    accepts = frozenset(Feature)
    def __init__(self, topology, name, score, make):
        self.rank, self.name = topology.local_ranks[0], name
        self.score, self.make = score, make
    def assess(self, request):
        return Yes(self.score)
    def build(self, request, context):
        inner = context.reference(request)
        made = self.make(type(inner), self.rank)
        return made(inner._rank, inner._size, inner._rendezvous.with_name(self.name))

def right(Plain, rank):
    return Plain

def wrong(Plain, rank):
    class Wrong(Plain):
        def all_reduce(self, x):
            return super().all_reduce(x) + rank
    return Wrong

def unconnected(Plain, rank):
    class Unconnected(Plain):
        def connect(self):
            1 / rank
    return Unconnected

@hookimpl
def communication(device, topology):
    return [Group(topology, *each) for each in ({groups})]
"""


@pytest.fixture
def together(tmp_path: Path) -> Any:
    """Run two ranks, with options of their own, and give what each printed."""

    def run(*options: dict[str, Any]) -> list[dict[str, Any]]:
        meeting = tmp_path / "meeting"
        meeting.mkdir()
        plugins = tmp_path / "plugins"
        command = (sys.executable, "-m", CHILD)
        ranks = [
            subprocess.Popen(
                [*command, meeting, str(rank), str(len(options)), plugins, json.dumps(each)],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank, each in enumerate(options)
        ]
        return [json.loads(each.communicate(timeout=120)[0]) for each in ranks]

    (tmp_path / "plugins").mkdir()
    return run


@pytest.fixture
def plugins(tmp_path: Path, together: Any) -> PluginFolder:
    return PluginFolder(tmp_path / "plugins")


def test_two_processes_choose_as_rank_0_and_connect(plugins: PluginFolder, together: Any) -> None:
    groups = GROUPS.replace("{groups}", "('acme', Tier.VENDOR, right),")
    plugins.add("acme", NORM + groups, MANIFEST)
    first, second = together({"use": ["ops=reference"]}, {})
    assert first == second | {"reasons": first["reasons"]}
    assert first["served"] == {"communication/tp": "acme", "ops/rms_norm": "reference"}


def test_ranks_that_cannot_agree_say_so_on_both(plugins: PluginFolder, together: Any) -> None:
    plugins.add("acme", NORM, MANIFEST)
    for result in together({}, {"deny": ["ops=acme"]}):
        assert "Ranks 1 chose other implementations than rank 0" in result["error"]
        assert "ops/rms_norm by reference" in result["error"]


def test_collectives_that_fail_on_one_rank_are_left_out_on_all(
    plugins: PluginFolder, together: Any
) -> None:
    groups = "('mute', Tier.TUNED, unconnected), ('liar', Tier.VENDOR, wrong)"
    plugins.add("acme", GROUPS.replace("{groups}", groups), MANIFEST)
    first, second = together({}, {})
    for result in (first, second):
        assert result["served"]["communication/tp"] == "reference"
        mute, liar = result["reasons"][:2]
        assert "rank 0: connect raised ZeroDivisionError" in mute
        assert liar.startswith("self-check: rank 1: wrong numbers of all_reduce")
    assert first["hash"] == second["hash"]


def test_a_rank_that_never_comes_is_no_hang(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError, match="not all of 2 ranks came"):
        FolderMeeting(tmp_path, 0, 2, limit_s=0.2).exchange(b"here")
