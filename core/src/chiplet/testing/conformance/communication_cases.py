"""Every case of communication: collectives x types x numbers of ranks."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from tempfile import TemporaryDirectory

import torch

from chiplet.api import CommunicationRequest, Dtype, GroupKind, SpmdPlatform
from chiplet.testing.conformance.case import Case, Refused, Skipped, Subject
from chiplet.testing.conformance.communication import COLLECTIVES, check_collective
from chiplet.testing.conformance.ranks import Ranks, on_ranks
from chiplet.testing.conformance.tolerance import TORCH_DTYPES
from chiplet.testing.conformance.verdict import refusal

NUM_RANKS = (2, 3, 4)


def communication_cases() -> Iterator[Case]:
    """All cases, the same ones in the same order each time."""
    for size, dtype, name in product(NUM_RANKS, Dtype, COLLECTIVES):
        yield _case(name, size, dtype, TORCH_DTYPES[dtype])
        if dtype is Dtype.FLOAT32:  # token ids travel in groups of any type
            yield _case(name, size, dtype, torch.int32)


def _case(name: str, size: int, dtype: Dtype, travels: torch.dtype) -> Case:
    request = CommunicationRequest(
        group=GroupKind.TENSOR,
        ranks=tuple(range(size)),
        dtype=dtype,
        size_classes_bytes=(1 << 10, 1 << 14, 1 << 20),
    )

    def check(subject: Subject) -> None:
        if isinstance(subject.context.platform, SpmdPlatform):
            raise Skipped("ranks of one program are not tried")
        with TemporaryDirectory(prefix="chiplet-ranks-") as folder:
            on_ranks(size, lambda rank: _work(subject.target, rank, folder))

    def _work(ranks: Ranks, rank: int, folder: str) -> None:
        provider, context = ranks.make(rank, size, folder)
        reasons = refusal(provider, request)
        if reasons is not None:
            raise Refused(reasons)
        device = context.torch_device
        communicator = provider.build(request, context)
        communicator.connect()
        try:
            check_collective(name, communicator, rank, size, dtype=travels, device=device)
            communicator.barrier()
        finally:
            communicator.close()
            communicator.close()

    column = str(travels).removeprefix("torch.")
    return Case(
        family="communication",
        operation="communication",
        dtype=column,
        feature=name,
        name=f"{size} ranks",
        request=f"communication of {size} ranks, {column}",
        is_quick=size == 2 and travels is not torch.float16,
        check=check,
    )
