"""The reference's collectives among ranks of this host."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from chiplet.api import CommunicationRequest, Dtype, Feature, GroupKind, No, Topology, Yes
from chiplet.reference.communication import PlainCommunicator, ReferenceCommunication
from chiplet.testing.conformance import check_communicator
from tests.parallel.threads import on_ranks

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int32)


def request(**changes: object) -> CommunicationRequest:
    fields = {"group": GroupKind.TENSOR, "ranks": (0, 1), "dtype": Dtype.FLOAT32}
    return CommunicationRequest(**(fields | changes))


@pytest.mark.parametrize("size", [2, 3])
def test_collectives_are_what_they_say(size: int, tmp_path: Path) -> None:
    def work(ranks):
        rank = ranks.local_ranks[0]
        communicator = PlainCommunicator(rank, size, tmp_path / "meeting")
        communicator.connect()
        for dtype in DTYPES:
            check_communicator(communicator, rank, size, dtype, torch.device("cpu"))
        ranks.communicator.barrier()
        communicator.close()
        return rank

    assert on_ranks(size, work) == list(range(size))


def test_a_rank_sends_to_another(tmp_path: Path) -> None:
    def work(ranks):
        rank = ranks.local_ranks[0]
        communicator = PlainCommunicator(rank, 2, tmp_path / "meeting")
        communicator.connect()
        x = torch.arange(6.0).reshape(2, 3) * (rank + 1)
        if rank == 0:
            communicator.send(x, 1)
            return x
        return communicator.recv(x, 0)

    sent, received = on_ranks(2, work)
    assert torch.equal(sent, received)


def test_a_wrong_sum_is_caught(tmp_path: Path) -> None:
    class Wrong(PlainCommunicator):
        def all_reduce(self, x):
            return super().all_reduce(x) * 1.01

    def work(ranks):
        communicator = Wrong(ranks.local_ranks[0], 2, tmp_path / "meeting")
        communicator.connect()
        with pytest.raises(AssertionError, match="all_reduce"):
            check_communicator(
                communicator, ranks.local_ranks[0], 2, torch.float32, torch.device("cpu")
            )

    on_ranks(2, work)


def test_what_waits_on_the_host_refuses_graphs_and_programs() -> None:
    provider = ReferenceCommunication(Topology(world_size=2))
    assert isinstance(provider.assess(request()), Yes)
    for field, feature in (
        ("is_captured", Feature.CAPTURED_COLLECTIVES),
        ("is_one_program", Feature.ONE_PROGRAM),
    ):
        asked = request(**{field: True})
        assert asked.features == {feature}
        verdict = provider.assess(asked)
        assert isinstance(verdict, No)
        assert verdict.reasons[0].text
