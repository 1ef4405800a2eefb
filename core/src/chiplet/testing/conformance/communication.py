"""Collectives against what their definitions give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from chiplet.api import Communicator
from chiplet.testing.conformance.tolerance import assert_close

SHAPES = ((1,), (3, 5), (1, 576), (33, 130))
_REPEATS = 20


@dataclass(frozen=True, slots=True)
class RankInputs:
    """What one rank gives, and what it knows of the others.

    Attributes:
        all: `[size, size, *shape]`, in main memory: of each rank, one tensor for each rank.
        slabs: `[size, *shape]`, the rank's own, on its device.
    """

    rank: int
    all: Tensor
    slabs: Tensor
    what: str

    @property
    def x(self) -> Tensor:
        """The rank's first tensor, `[*shape]`."""
        return self.slabs[0]

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self.all.shape[0]


Collective = Callable[[Communicator, RankInputs], None]
"""Calls one collective on every rank; raises AssertionError where a result is wrong."""


def check_communicator(
    communicator: Communicator, rank: int, size: int, dtype: torch.dtype, device: torch.device
) -> None:
    """Check every collective of a connected group; every rank must call this at the same time.

    Raises:
        AssertionError: a result is wrong, or an argument was changed.
    """
    for name in COLLECTIVES:
        check_collective(name, communicator, rank, size, dtype=dtype, device=device)


def check_collective(
    name: str,
    communicator: Communicator,
    rank: int,
    size: int,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Check one collective, for messages of several sizes; every rank must call this.

    Every rank knows the tensors of all, so that each checks its own results.

    Raises:
        AssertionError: a result is wrong, or an argument was changed.
    """
    for number, shape in enumerate(SHAPES):
        random = torch.Generator().manual_seed(number)
        tensors = torch.stack([_make((size, *shape), dtype, random) for _ in range(size)])
        slabs = tensors[rank].to(device, copy=True)
        before = slabs.clone()
        what = f"{name} of {shape} of {dtype}, rank {rank} of {size}"
        COLLECTIVES[name](communicator, RankInputs(rank, tensors, slabs, what))
        assert torch.equal(slabs, before), f"{what}: an argument was changed"


def _all_reduce(communicator: Communicator, inputs: RankInputs) -> None:
    total = communicator.all_reduce(inputs.x)
    _check_sum(total, inputs.all[:, 0], inputs.what)
    everyone = communicator.all_gather(total)
    assert all(torch.equal(each, total) for each in everyone), f"{inputs.what}: ranks differ"


def _all_gather(communicator: Communicator, inputs: RankInputs) -> None:
    _check_same(communicator.all_gather(inputs.x), inputs.all[:, 0], inputs.what)


def _reduce_scatter(communicator: Communicator, inputs: RankInputs) -> None:
    result = communicator.reduce_scatter(inputs.slabs)
    _check_sum(result, inputs.all[:, inputs.rank], inputs.what)


def _all_to_all(communicator: Communicator, inputs: RankInputs) -> None:
    _check_same(communicator.all_to_all(inputs.slabs), inputs.all[:, inputs.rank], inputs.what)


def _broadcast(communicator: Communicator, inputs: RankInputs) -> None:
    for source in range(inputs.size):
        got = communicator.broadcast(inputs.x, source)
        _check_same(got, inputs.all[source, 0], f"{inputs.what}, from {source}")


def _send_recv(communicator: Communicator, inputs: RankInputs) -> None:
    for source in range(inputs.size):
        target = (source + 1) % inputs.size
        if inputs.rank == source:
            communicator.send(inputs.slabs[target], target)
        elif inputs.rank == target:
            got = communicator.recv(torch.empty_like(inputs.x), source)
            _check_same(got, inputs.all[source, target], f"{inputs.what}, from {source}")


def _barrier(communicator: Communicator, inputs: RankInputs) -> None:
    for _ in range(_REPEATS):
        communicator.barrier()


def _fresh_results(communicator: Communicator, inputs: RankInputs) -> None:
    """Results stay as they are while the same call is made again with other values."""
    order = [number % inputs.size for number in range(_REPEATS)]
    results = [communicator.all_reduce(inputs.slabs[each]) for each in order]
    gathered = [communicator.all_gather(inputs.slabs[each]) for each in range(inputs.size)]
    for each, result in zip(order, results, strict=True):
        _check_sum(result, inputs.all[:, each], f"{inputs.what}, summed {each}")
    for number, result in enumerate(gathered):
        _check_same(result, inputs.all[:, number], f"{inputs.what}, gathered {number}")


def _strided_inputs(communicator: Communicator, inputs: RankInputs) -> None:
    """What is not contiguous counts as its values say."""
    strided = torch.stack([inputs.x, torch.zeros_like(inputs.x)], dim=-1)[..., 0]
    _check_sum(communicator.all_reduce(strided), inputs.all[:, 0], f"{inputs.what}, summed")
    _check_same(communicator.all_gather(strided), inputs.all[:, 0], f"{inputs.what}, gathered")


COLLECTIVES: Mapping[str, Collective] = {
    "all_reduce": _all_reduce,
    "all_gather": _all_gather,
    "reduce_scatter": _reduce_scatter,
    "all_to_all": _all_to_all,
    "broadcast": _broadcast,
    "send and recv": _send_recv,
    "barrier": _barrier,
    "results are fresh": _fresh_results,
    "strided inputs": _strided_inputs,
}
"""What is checked, by the name in the report."""


def _make(shape: tuple[int, ...], dtype: torch.dtype, random: Generator) -> Tensor:
    if dtype.is_floating_point:
        return torch.randn(shape, generator=random).to(dtype)
    return torch.randint(-(2**20), 2**20, shape, generator=random).to(dtype)


def _check_same(result: Tensor, expected: Tensor, what: str) -> None:
    assert torch.equal(result.cpu(), expected), f"{what}: other values than those sent"


def _check_sum(result: Tensor, terms: Tensor, what: str) -> None:
    if not terms.is_floating_point():
        expected = terms.sum(0).to(terms.dtype)
        assert torch.equal(result.cpu(), expected), f"{what}: error in a sum of integers"
        return
    plain = terms.float().sum(0).to(terms.dtype)
    assert_close(result.cpu(), plain, terms.double().sum(0), what)
