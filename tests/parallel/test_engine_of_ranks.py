"""An engine whose ranks are processes: it answers as one rank does, and fails in order."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from chiplet.config import EngineConfig
from chiplet.engine import Engine
from chiplet.errors import ConfigError, EngineError
from chiplet.ranks import processes
from chiplet.ranks.company import Company
from chiplet.ranks.links import RankLink
from chiplet.ranks.messages import RankFailed
from chiplet.ranks.processes import Death, RankProcesses
from chiplet.sampling_params import SamplingParams
from chiplet.worker import EngineFacts, explain, start
from tests.models.tiny import make_checkpoint
from tests.parallel.moody import LONE_PLATFORM, MOOD, PROVIDER
from tests.server.server_process import eventually
from tests.unit.plugins.conftest import PLATFORM_MANIFEST, PluginFolder

GREEDY = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)
REQUESTS = (
    ([2, 3, 4, 5, 6], GREEDY),
    ([7, 8, 9] * 12, GREEDY),
    ([10], SamplingParams(temperature=1, top_p=0.9, max_tokens=9, repetition_penalty=1.2)),
    ([3, 1], SamplingParams(temperature=0, max_tokens=6, logprobs=2, logit_bias={5: 3.0})),
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    make_checkpoint("llama-tied", folder)
    return folder


def config_of(checkpoint: Path, num_ranks: int = 2, **options: Any) -> EngineConfig:
    return EngineConfig.from_options(
        model=str(checkpoint),
        dtype="float32",
        page_size=4,
        max_total_tokens=512,
        context_length=128,
        max_running_requests=4,
        chunked_prefill_size=16,
        tensor_parallel_size=num_ranks,
        **({"device": "reference"} | options),
    )


def run(engine: Engine, facts: EngineFacts) -> dict[str, list[int]]:
    """All requests at once; the tokens of each."""
    answers: dict[str, list[int]] = {}
    for index, (prompt, sampling) in enumerate(REQUESTS):
        array = np.array(prompt, dtype=np.int32)
        now_s = time.monotonic()
        engine.add(facts.limits.request(f"r{index}", array, sampling, seed=index, arrival_s=now_s))
        answers[f"r{index}"] = []
    while engine.has_work:
        for output in engine.step():
            assert output.error is None
            answers[output.request_id] += output.token_ids
    return answers


def ranks_of(process: psutil.Process) -> list[psutil.Process]:
    """The further ranks that a process has started."""
    found = process.children(recursive=True)
    return [each for each in found if "chiplet.ranks.rank_process" in " ".join(each.cmdline())]


@pytest.fixture
def own_ranks() -> Iterator[Any]:
    """Further ranks of this process; none is to be left."""
    me = psutil.Process()
    yield lambda: ranks_of(me)
    assert ranks_of(me) == []


@pytest.fixture
def moody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Install a plugin for this process and those that it starts, and say how rank 1 feels."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    plugins = PluginFolder(tmp_path)

    def feels(mood: str) -> None:
        plugins.add("moody", PROVIDER)
        monkeypatch.setenv(MOOD, mood)

    feels.plugins = plugins  # type: ignore[attr-defined]
    return feels


def test_two_ranks_give_the_tokens_of_one(checkpoint: Path, own_ranks: Any) -> None:
    expected = run(*start(config_of(checkpoint, 1)))
    engine, facts = start(config_of(checkpoint, 2))
    try:
        assert len(own_ranks()) == 1
        assert run(engine, facts) == expected
        assert run(engine, facts) == expected, "with pages that both have cached"
        assert facts.plan["ranks"] == list(facts.ranks)
        assert [each.partition(" on ")[0] for each in facts.ranks] == ["rank 0", "rank 1"]
        assert any("2 ranks share the model" in line for line in facts.banner)
        served = {each["operation"]: each["provider"] for each in facts.plan["choices"]}
        assert served["communication/tp"] == "reference"
    finally:
        engine.close()
        engine.close()


def test_a_killed_rank_ends_the_engine_and_blames_nobody(checkpoint: Path, own_ranks: Any) -> None:
    engine, facts = start(config_of(checkpoint))
    run(engine, facts)
    own_ranks()[0].kill()
    # An idle engine notices.
    assert eventually(lambda: engine.has_work)
    with pytest.raises(EngineError, match="Rank 1 ended with signal SIGKILL") as caught:
        run(engine, facts)
    assert (caught.value.deny, caught.value.is_crash) == ((), False)
    engine.close()


def test_what_a_rank_said_before_it_ended_is_told_as_often_as_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    company = Company(2)
    (folder,) = tmp_path.iterdir()
    link = RankLink(folder, 1)
    link.report_failure(RankFailed(1, "no mood", deny=("ops/rms_norm=moody",)))
    monkeypatch.setattr(RankProcesses, "first_death", lambda self: Death(1, 1))
    for _ in range(2):  # by has_work, then by step
        fault = company.lost()
        assert fault is not None
        assert (str(fault), fault.deny) == ("Rank 1 failed: no mood", ("ops/rms_norm=moody",))
    link.close()
    company.end()


def test_an_engine_that_is_dropped_leaves_no_process(checkpoint: Path, own_ranks: Any) -> None:
    engine, _ = start(config_of(checkpoint))
    assert own_ranks()
    del engine
    assert eventually(lambda: not own_ranks())


def test_a_step_that_fails_on_rank_1_ends_the_engine_and_names_who_is_to_blame(
    checkpoint: Path, moody: Any, own_ranks: Any
) -> None:
    moody("raise")
    engine, facts = start(config_of(checkpoint))
    with pytest.raises((EngineError, AssertionError)):
        run(engine, facts)
    with pytest.raises(EngineError, match="Rank 1 failed: ArithmeticError: rank 1 is") as caught:
        engine.step()
    assert caught.value.deny == ("ops/rms_norm=moody",)
    engine.close()


@pytest.mark.parametrize(
    ("mood", "words"),
    [
        ("refuse", "rank 1: The plan of rank 0 cannot be followed: ops/rms_norm: file moody"),
        ("leave", "Rank 1 ended with exit code 3"),
    ],
)
def test_a_start_that_fails_on_rank_1_says_why(
    checkpoint: Path, moody: Any, own_ranks: Any, mood: str, words: str
) -> None:
    moody(mood)
    with pytest.raises(ConfigError, match=words):
        start(config_of(checkpoint))


def test_a_rank_without_a_device_says_so(checkpoint: Path, moody: Any, own_ranks: Any) -> None:
    moody.plugins.add("lone", LONE_PLATFORM, PLATFORM_MANIFEST)
    with pytest.raises(ConfigError, match="Rank 1 cannot start: Device 'lone:1' is not there"):
        start(config_of(checkpoint, device="lone"))


@pytest.mark.parametrize("num_ranks", [4, 5, 12])
def test_heads_that_cannot_be_shared_are_refused(checkpoint: Path, num_ranks: int) -> None:
    words = (
        f"tensor-parallel-size is {num_ranks}; the model's 6 attention heads with 2 key heads can "
        "be shared by 1, 2, 6 ranks"
    )
    with pytest.raises(ConfigError, match=words):
        explain(config_of(checkpoint, num_ranks))


def test_explain_chooses_without_starting_ranks(
    checkpoint: Path, own_ranks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "COMMAND", ("no such program",))
    plan = explain(config_of(checkpoint))
    assert "communication/tp" in {each.operation for each in plan.choices}


SCRIPT = """
import sys, time
from chiplet.config import EngineConfig
from chiplet.worker import start
if __name__ == "__main__":
    engine, _ = start(EngineConfig.from_options(
        model=sys.argv[1], device="reference", max_total_tokens=64, tensor_parallel_size=2))
    print("up", flush=True)
    time.sleep(600)
"""


def test_ranks_do_not_outlive_their_parent(checkpoint: Path) -> None:
    command = (sys.executable, "-c", SCRIPT, str(checkpoint))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "up\n"
        ranks = ranks_of(psutil.Process(program.pid))
        assert len(ranks) == 1
        program.kill()
    assert eventually(lambda: not any(each.is_running() for each in ranks))
