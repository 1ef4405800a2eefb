"""Collectives through shared memory: long messages, recorded steps, and peers that are gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from chiplet.api import CommunicationRequest, Dtype, Feature, GroupKind, No, Topology, Yes
from chiplet.testing.conformance import check_communicator
from chiplet.testing.conformance.ranks import on_ranks
from chiplet_cpu import group_memory, native
from chiplet_cpu.communicator import SharedMemoryCommunicator, SharedMemoryProvider
from chiplet_cpu.group_memory import share
from chiplet_cpu.recording.arena import Arena
from chiplet_cpu.recording.recorder import Recorder

pytestmark = pytest.mark.skipif(not native.is_available(), reason=native.explanation())

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int32)
# Longer than what travels at a time, and of no round length.
LONG = 3_000_017


def together(
    folder: Path, size: int, work: Callable[[SharedMemoryCommunicator, int], object]
) -> list[object]:
    """What work gives on each rank, all of them threads of this process."""

    def run(rank: int) -> object:
        communicator = SharedMemoryCommunicator(folder / "group", rank, size)
        communicator.connect()
        try:
            return work(communicator, rank)
        finally:
            communicator.close()
            communicator.close()

    return on_ranks(size, run)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_collectives_are_what_they_say(size: int, tmp_path: Path) -> None:
    def work(communicator: SharedMemoryCommunicator, rank: int) -> None:
        assert not list(tmp_path.iterdir()), "something is left in the folder"
        for dtype in DTYPES:
            check_communicator(communicator, rank, size, dtype, torch.device("cpu"))

    together(tmp_path, size, work)


@pytest.mark.parametrize("size", [2, 3])
def test_long_messages_travel_in_runs(size: int, tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(size)
    whole = torch.randint(-99, 99, (size, size, LONG // size), generator=random).to(torch.int32)
    flat = whole.flatten(1)

    def work(communicator: SharedMemoryCommunicator, rank: int) -> None:
        following, before = (rank + 1) % size, (rank - 1) % size
        assert torch.equal(communicator.all_reduce(flat[rank]), flat.sum(0).int())
        assert torch.equal(communicator.all_gather(flat[rank]), flat)
        assert torch.equal(communicator.reduce_scatter(whole[rank]), whole[:, rank].sum(0).int())
        assert torch.equal(communicator.all_to_all(whole[rank]), whole[:, rank])
        assert torch.equal(communicator.broadcast(flat[rank], size - 1), flat[size - 1])
        if rank == 0:
            communicator.send(flat[rank], following)
            assert torch.equal(communicator.recv(flat[rank], before), flat[before])
        else:
            assert torch.equal(communicator.recv(flat[rank], before), flat[before])
            communicator.send(flat[rank], following)

    together(tmp_path, size, work)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 65, 40_001, 700_003])
def test_every_rank_gets_the_same_bits(count: int, dtype: torch.dtype, tmp_path: Path) -> None:
    terms = torch.randn((3, count), generator=torch.Generator().manual_seed(count)).to(dtype)

    def work(communicator: SharedMemoryCommunicator, rank: int) -> Tensor:
        return communicator.all_reduce(terms[rank])

    first, *others = together(tmp_path, 3, work)
    assert isinstance(first, Tensor)
    for each in others:
        assert isinstance(each, Tensor)
        assert torch.equal(first, each)
    in_order = (terms[0].float() + terms[1].float() + terms[2].float()).to(dtype)
    assert torch.equal(first, in_order)


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_cpu_communicator
test_cpu_communicator.be_rank_1(Path(sys.argv[2]))
"""


def recorded(communicator: SharedMemoryCommunicator, x: Tensor) -> tuple[Recorder, list[Tensor]]:
    """A step that is all collectives, on a tape."""
    with Recorder(Arena()) as recorder:
        total = communicator.all_reduce(x)
        gathered = communicator.all_gather(total[:, ::2])
        told = communicator.broadcast(gathered[1], 1)
    return recorder, [total, gathered, told]


def replay(recorder: Recorder) -> None:
    for entry in recorder.entries:
        entry()


def values(number: int, rank: int) -> Tensor:
    return torch.randn((3, 10), generator=torch.Generator().manual_seed(2 * number + rank))


def check_replays(communicator: SharedMemoryCommunicator, rank: int) -> tuple[Tensor, Recorder]:
    """Steps whose numbers are right, of which this rank repeats a tape and the other may not."""
    x = values(0, rank)
    recorder, (total, gathered, told) = recorded(communicator, x)
    for number in range(1, 4):
        x.copy_(values(number, rank))
        replay(recorder)
        wanted = values(number, 0) + values(number, 1)
        assert torch.equal(total, wanted)
        assert torch.equal(gathered, torch.stack([wanted[:, ::2]] * 2))
        assert torch.equal(told, wanted[:, ::2])
    # What is made at once goes with what is repeated.
    x.copy_(values(9, rank))
    if rank == 0:
        replay(recorder)
    else:
        total = communicator.all_reduce(x)
        gathered = communicator.all_gather(total[:, ::2])
        told = communicator.broadcast(gathered[1], 1)
    assert torch.equal(total, values(9, 0) + values(9, 1))
    assert torch.equal(told, total[:, ::2])
    return x, recorder


def be_rank_1(folder: Path) -> None:
    """What the other process does: all of it, and then it is killed."""
    communicator = SharedMemoryCommunicator(folder / "group", 1, 2)
    communicator.connect()
    check_replays(communicator, 1)
    communicator.barrier()
    os.kill(os.getpid(), signal.SIGKILL)


@torch.inference_mode()
def test_tapes_repeat_collectives_and_a_killed_peer_is_an_error(tmp_path: Path) -> None:
    here = str(Path(__file__).parent)
    with subprocess.Popen([sys.executable, "-c", CHILD, here, str(tmp_path)]) as child:
        communicator = SharedMemoryCommunicator(tmp_path / "group", 0, 2)
        communicator.connect()
        try:
            x, recorder = check_replays(communicator, 0)
            communicator.barrier()
            with pytest.raises(RuntimeError, match="rank 1 of the group has ended"):
                replay(recorder)
            with pytest.raises(RuntimeError, match="rank 1 of the group has ended"):
                communicator.all_reduce(x)
            with pytest.raises(RuntimeError, match="rank 1 of the group has ended"):
                communicator.send(torch.zeros(1 << 20), 1)
        finally:
            communicator.close()
            child.kill()
    assert child.returncode == -signal.SIGKILL


def test_all_hear_of_a_rank_that_left_from_whoever_waited_for_it(tmp_path: Path) -> None:
    def work(communicator: SharedMemoryCommunicator, rank: int) -> None:
        communicator.barrier()
        if rank == 2:
            return
        with pytest.raises(RuntimeError, match="rank 2 of the group has ended"):
            communicator.recv(torch.empty(4), 2 if rank == 0 else 0)

    together(tmp_path, 3, work)


def test_to_close_ends_a_call_that_waits(tmp_path: Path) -> None:
    words: list[str] = []
    is_over = threading.Event()

    def work(communicator: SharedMemoryCommunicator, rank: int) -> None:
        def wait() -> None:
            try:
                communicator.recv(torch.empty(4), 1 - rank)
            except RuntimeError as error:
                words.append(str(error))

        communicator.barrier()
        if rank == 0:
            waiting = threading.Thread(target=wait)
            waiting.start()
            communicator.close()
            waiting.join()
            is_over.set()
        assert is_over.wait(60)

    together(tmp_path, 2, work)
    assert words == ["rank 0 of the group has ended"]


def test_who_waits_in_vain_to_meet_says_for_whom(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError, match="1 of 3 ranks came"):
        share(tmp_path / "group", 0, 3, 4096, limit_s=0.05)
    with pytest.raises(TimeoutError, match="rank 0 did not come"):
        share(tmp_path / "group", 1, 3, 4096, limit_s=0.05)
    assert not list(tmp_path.iterdir())


def test_sums_of_other_types_are_refused(tmp_path: Path) -> None:
    def work(communicator: SharedMemoryCommunicator, rank: int) -> None:
        with pytest.raises(TypeError, match=r"float64; allowed are float32, bfloat16, float16"):
            communicator.all_reduce(torch.zeros(3, dtype=torch.float64))

    together(tmp_path, 2, work)


def request(size: int = 2, **changes: bool) -> CommunicationRequest:
    ranks = tuple(range(size))
    return CommunicationRequest(
        group=GroupKind.TENSOR, ranks=ranks, dtype=Dtype.BFLOAT16, **changes
    )


def test_the_provider_serves_recorded_steps_of_one_linux_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    provider = SharedMemoryProvider(Topology(world_size=2, local_ranks=(0,)))
    assert isinstance(provider.assess(request(is_captured=True)), Yes)
    assert request(is_captured=True).features <= provider.accepts
    assert Feature.ONE_PROGRAM not in provider.accepts
    too_many = provider.assess(request(65))
    assert isinstance(too_many, No)
    assert too_many.reasons[0].text == "65; at most 64"
    monkeypatch.setattr(group_memory.os, "memfd_create", None)
    monkeypatch.delattr(group_memory.os, "memfd_create")
    assert isinstance(provider.assess(request()), No)
