"""Collectives against what their definitions give."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from chiplet.api import Communicator
from chiplet.testing.conformance.tolerance import assert_close

_SHAPES = ((1,), (3, 5), (1, 576), (33, 130))


def check_communicator(
    communicator: Communicator, rank: int, size: int, dtype: torch.dtype, device: torch.device
) -> None:
    """Check every collective of a connected group; every rank must call this at the same time.

    Every rank knows the tensors of all, so that each checks its own results.

    Raises:
        AssertionError: a result is wrong, or an argument was changed.
    """
    for number, shape in enumerate(_SHAPES):
        random = torch.Generator().manual_seed(number)
        tensors = torch.stack([_make((size, *shape), dtype, random) for _ in range(size)])
        slabs = tensors[rank].to(device)  # [size, *shape]: one tensor for each rank
        before = slabs.clone()
        x = slabs[0]
        what = f"{shape} of {dtype}, rank {rank} of {size}"
        total = communicator.all_reduce(x)
        _check_sum(total, tensors[:, 0], f"all_reduce {what}")
        everyone = communicator.all_gather(total)
        assert all(torch.equal(each, total) for each in everyone), (
            f"all_reduce {what}: ranks differ"
        )
        gathered = communicator.all_gather(x)
        assert torch.equal(gathered.cpu(), tensors[:, 0]), f"all_gather {what}"
        _check_sum(communicator.reduce_scatter(slabs), tensors[:, rank], f"reduce_scatter {what}")
        exchanged = communicator.all_to_all(slabs)
        assert torch.equal(exchanged.cpu(), tensors[:, rank]), f"all_to_all {what}"
        for source in range(size):
            got = communicator.broadcast(x, source)
            assert torch.equal(got.cpu(), tensors[source, 0]), f"broadcast {what}"
        communicator.barrier()
        assert torch.equal(slabs, before), f"{what}: an argument was changed"


def _make(shape: tuple[int, ...], dtype: torch.dtype, random: Generator) -> Tensor:
    if dtype.is_floating_point:
        return torch.randn(shape, generator=random).to(dtype)
    return torch.randint(-(2**20), 2**20, shape, generator=random).to(dtype)


def _check_sum(result: Tensor, terms: Tensor, what: str) -> None:
    if not terms.is_floating_point():
        assert torch.equal(result.cpu(), terms.sum(0).to(terms.dtype)), what
        return
    plain = terms.float().sum(0).to(terms.dtype)
    assert_close(result.cpu(), plain, terms.double().sum(0), what)
