"""A run that is stopped says so, and reports what ran until then."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from dataclasses import replace

import pytest

from chiplet.cli.main import main
from chiplet.config import DeviceOptions
from chiplet.testing.conformance import sharing
from chiplet.testing.conformance.case import Case, Status, Subject
from chiplet.testing.conformance.report import Report
from chiplet.testing.conformance.running import run_all
from chiplet.testing.conformance.sharing import Sharing, run_shared
from chiplet.testing.conformance.suite import Choice, choose_pairs, find_subjects
from chiplet.testing.conformance.summary import show

SUBJECT = Subject(
    family="x", name="acme", distribution="acme", version="1", target=None, context=None
)


def pairs_of(*checks):
    cases = [
        Case(family="x", operation="x", name=f"no. {number}", check=lambda _, c=check: c())
        for number, check in enumerate(checks)
    ]
    return [(case, SUBJECT) for case in cases]


def nothing():
    pass


def report_of(run):
    return Report(
        device="cpu:0",
        tier="quick",
        outcomes=run.outcomes,
        num_planned=run.num_planned,
        stopped=run.stopped,
        seconds=run.seconds,
    )


@pytest.mark.parametrize(
    ("number", "word"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")]
)
def test_a_signal_ends_the_run_and_leaves_a_report(number, word):
    before = signal.getsignal(number)
    run = run_all(pairs_of(nothing, lambda: signal.raise_signal(number), nothing))
    assert signal.getsignal(number) is before
    assert [each.status for each in run.outcomes] == [Status.PASSED]
    assert run.stopped == f"{word} in acme x-plain-no._1"
    report = report_of(run)
    assert not report.is_green
    assert report.num_unrun == 2
    assert report.to_json()["badge"]["message"] == "0 failed, 0 lost, 2 not run"
    assert "interrupted" in report.to_html() or "terminated" in report.to_html()


def test_the_time_limit_ends_a_case_that_hangs():
    start = time.perf_counter()
    run = run_all(pairs_of(nothing, lambda: time.sleep(60), nothing), time_limit_s=0.2)
    assert time.perf_counter() - start < 30
    assert run.stopped == "stopped after the time limit of 0.2 s, in acme x-plain-no._1"
    assert len(run.outcomes) == 1


def test_in_another_thread_the_limit_holds_between_cases():
    runs = []
    pairs = pairs_of(lambda: time.sleep(0.3), nothing)
    thread = threading.Thread(target=lambda: runs.append(run_all(pairs, time_limit_s=0.1)))
    thread.start()
    thread.join()
    assert len(runs[0].outcomes) == 1
    assert "time limit" in runs[0].stopped


def test_a_run_within_its_limit_is_whole():
    run = run_all(pairs_of(nothing, nothing), time_limit_s=60)
    assert not run.stopped
    assert report_of(run).is_green
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_slow_cases_are_named(capsys):
    run = run_all(pairs_of(nothing, nothing))
    slow = replace(run.outcomes[1], seconds=7.5)
    show(report_of(replace(run, outcomes=[run.outcomes[0], slow])))
    out = capsys.readouterr().out
    assert "slow 7.5 s acme x-plain-no._1" in out
    assert "x-plain-no._0" not in out


def test_the_command_reports_what_ran_in_its_time(tmp_path, capsys):
    path = tmp_path / "report.json"
    words = ["conformance", "--device", "reference", "--only", "window 64", "--time-limit", "1"]
    assert main([*words, "--json", str(path)]) == 1
    report = json.loads(path.read_text())
    assert "time limit of 1 s" in report["stopped"]
    assert 0 < len(report["cases"]) < report["num_planned"]
    assert {each["feature"] for each in report["cases"]} <= {"window 64", "window 64, plain"}
    words = capsys.readouterr().out.split()  # lines are folded to the width of the terminal
    assert "did not run" in " ".join(words)
    assert main([*words, "--update-snapshot", str(path)]) == 2


def test_an_unknown_word_for_only_is_refused(capsys):
    assert main(["conformance", "--device", "reference", "--only", "teleport"]) == 2
    assert "--only teleport" in capsys.readouterr().err


def test_a_narrow_terminal_cuts_no_heading(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    run = run_all(pairs_of(nothing))
    long = replace(SUBJECT, name="a-name-of-a-provider", distribution="chiplet-of-somebody")
    show(report_of(replace(run, outcomes=[replace(each, subject=long) for each in run.outcomes])))
    shown = capsys.readouterr().out
    heading = next(line for line in shown.splitlines() if "operation" in line)
    assert heading.split() == ["provider", "operation", *map(str, Status), "s"]


REFERENCE = DeviceOptions(device="reference")
SILU_MUL = Choice(only="ops/silu_mul")
SHARED = ["conformance", "--device", "reference", "--only", "ops/silu_mul"]


def statuses(path):
    cases = json.loads(path.read_text("utf-8"))["cases"]
    names = ("operation", "dtype", "feature", "name", "status")
    return [[each[name] for name in names] for each in cases]


def test_processes_share_a_run_and_leave_the_same_report(tmp_path):
    alone, shared = tmp_path / "alone.json", tmp_path / "shared.json"
    assert main([*SHARED, "--json", str(alone)]) == 0
    assert main([*SHARED, "--jobs", "2", "--json", str(shared)]) == 0
    assert len(statuses(alone)) > 4
    assert statuses(shared) == statuses(alone)


def test_the_time_limit_ends_a_shared_run(tmp_path):
    pairs = choose_pairs(find_subjects(REFERENCE), SILU_MUL)
    run = run_shared(pairs, Sharing(jobs=1, device=REFERENCE, choice=SILU_MUL, time_limit_s=0.1))
    assert run.stopped == "stopped after the time limit of 0.1 s,"
    assert len(run.outcomes) < run.num_planned == len(pairs)
    assert not multiprocessing.active_children()


def die(numbers):
    os._exit(3)


def test_a_process_that_dies_ends_a_shared_run_and_says_so(monkeypatch):
    pairs = choose_pairs(find_subjects(REFERENCE), SILU_MUL)
    monkeypatch.setattr(sharing, "_run_numbers", die)
    run = run_shared(pairs, Sharing(jobs=1, device=REFERENCE, choice=SILU_MUL))
    assert run.stopped.startswith("a process died; run with --jobs 1")
    assert not run.outcomes
