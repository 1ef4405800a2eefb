"""Whose fault a crash was: what stacks show, and who is suspected where they show nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from chiplet.crash import InUse, place_of, shown_by
from chiplet.server.suspicion import FORGOTTEN_S, Suspicion

ATTENTION = InUse(
    denial="attention/global=acme",
    family="attention",
    distribution="chiplet-acme",
    spans=(("/acme/kernels.py", 10, 20),),
)
QKV, OUT = (
    InUse(
        denial=f"linear/{role}=acme",
        family="linear",
        distribution="chiplet-acme",
        spans=(("/acme/kernels.py", 30, 40),),
    )
    for role in ("qkv_proj", "o_proj")
)
NORM = InUse(denial="ops/rms_norm=own", family="ops", distribution="chiplet-own")
OWN_ATTENTION = InUse(denial="attention/global=own", family="attention", distribution="chiplet-own")

STACK = """Fatal Python error: Segmentation fault

Thread 0x00007f01 (most recent call first):
  File "/acme/kernels.py", line 12 in run
  File "/usr/lib/python3.11/threading.py", line 1 in run

Current thread 0x00007f00 (most recent call first):
  File "/usr/lib/python3.11/ctypes/__init__.py", line 519 in string_at
  File "/acme/kernels.py", line 33 in run
  File "/acme/kernels.py", line 11 in run
  File "/core/layers/linear.py", line 1 in __call__

Extension modules: numpy (total: 1)
"""


def test_the_innermost_frame_of_the_thread_that_crashed_counts() -> None:
    assert shown_by(STACK, [ATTENTION, QKV, OUT, NORM]) == (QKV, OUT)
    assert shown_by(STACK, [ATTENTION, NORM]) == (ATTENTION,)
    assert shown_by(STACK, [NORM]) == ()


@pytest.mark.parametrize("stack", ["", "Fatal Python", STACK[:150], STACK[:45]])
def test_a_stack_that_is_cut_off_shows_what_it_has(stack: str) -> None:
    assert shown_by(stack, [QKV]) == ()


def test_a_crash_of_a_foreign_thread_leaves_those_of_python() -> None:
    assert shown_by(STACK.replace("Current thread", "Thread"), [QKV, ATTENTION]) == (ATTENTION,)


def test_stacks_are_read_as_this_python_writes_them() -> None:
    code = (
        "import ctypes, faulthandler\nfaulthandler.enable()\ndef f():\n  ctypes.string_at(0)\nf()"
    )
    died = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert died.returncode < 0
    here = InUse(denial="x", family="ops", distribution="d", spans=(("<string>", 3, 4),))
    assert shown_by(died.stderr, [here]) == (here,)
    assert "ctypes" in place_of(died.stderr)


def test_other_threads_accuse_nobody_where_one_is_marked() -> None:
    crash_in_core, _, rest = STACK.partition("Current thread")
    elsewhere = crash_in_core + "Current thread" + rest.replace("/acme/", "/other/")
    assert shown_by(elsewhere, [ATTENTION, QKV]) == ()


def test_paths_are_compared_as_a_stack_writes_them() -> None:
    file = "/home/jos\u00e9/kernels.py"
    stack = f'Current thread 0x0 (most recent call first):\n  File "{file}", line 12 in run\n'
    written = stack.encode("ascii", "backslashreplace").decode()
    theirs = InUse(denial="x", family="ops", distribution="d", spans=((file, 10, 20),))
    assert shown_by(written, [theirs]) == (theirs,)


def test_who_was_denied_is_not_accused_again_before_the_engine_is_ready() -> None:
    suspicion = Suspicion()
    suspicion.know([ATTENTION, QKV, OUT], "chiplet-own")
    assert suspicion.accuse(STACK).deny == (QKV.denial, OUT.denial)
    assert suspicion.accuse(STACK).deny == (ATTENTION.denial,)
    assert suspicion.accuse(STACK).deny == ()


def test_who_is_shown_is_denied_at_once() -> None:
    suspicion = Suspicion()
    suspicion.know([ATTENTION, QKV, OUT], "chiplet-own")
    assert suspicion.accuse(STACK).deny == (QKV.denial, OUT.denial)


def test_a_second_crash_that_shows_nobody_makes_suspects_third_parties_first() -> None:
    suspicion = Suspicion()
    in_use = [NORM, QKV, OUT, ATTENTION]
    suspicion.know(in_use, "chiplet-own")
    first = suspicion.accuse("")
    assert first.deny == ()
    assert "nobody is suspected for once" in first.text
    denied: list[tuple[str, ...]] = []
    while in_use:
        accusation = suspicion.accuse("")
        assert "may be innocent" in accusation.text
        denied.append(accusation.deny)
        in_use = [each for each in in_use if each.denial not in accusation.deny]
        suspicion.know(in_use, "chiplet-own")
    assert denied == [(ATTENTION.denial,), (QKV.denial, OUT.denial), (NORM.denial,)]
    assert "nothing can be done without" in suspicion.accuse("").text


def test_the_devices_own_plugin_is_suspected_last() -> None:
    suspicion = Suspicion()
    suspicion.know([OWN_ATTENTION, QKV], "chiplet-own")
    suspicion.accuse("")
    assert suspicion.accuse("").deny == (QKV.denial,)


def test_crashes_long_apart_are_no_repetition() -> None:
    now_s = 0.0
    suspicion = Suspicion(now_s=lambda: now_s)
    suspicion.know([QKV], "chiplet-own")
    suspicion.accuse("")
    now_s = FORGOTTEN_S + 1
    assert suspicion.accuse("").deny == ()
    assert suspicion.accuse("").deny == (QKV.denial,)
