"""Collectives of a connected group against what their definitions give, on a few small numbers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from chiplet.api import CommunicationRequest, Communicator
from chiplet.layers.context import torch_dtype
from chiplet.plugins.isolation import FAULTS

_SHAPE = (3, 5)


def communication_fault(
    communicator: Communicator, request: CommunicationRequest, rank: int, device: torch.device
) -> str:
    """What is wrong with a connected group, or an empty text. Never raises.

    Every rank of the group must call this at the same time. A rank whose call raises closes its
    connections, so that its peers do not wait for it until their time limit.
    """
    try:
        size, dtype = request.world_size, torch_dtype(request.dtype)
        # Integers, and sums of them, that every type holds exactly.
        all_of_them = torch.arange(size * size * 15).remainder(13).view(size, size, *_SHAPE)
        all_of_them = all_of_them.to(dtype)
        mine = all_of_them[rank].to(device)
        results = _results(communicator, mine)
    except FAULTS as error:
        communicator.close()
        return f"raised {type(error).__name__}: {error}"
    expected = {
        "all_reduce": all_of_them[:, 0].sum(0),
        "all_gather": all_of_them[:, 0],
        "reduce_scatter": all_of_them[:, rank].sum(0),
        "all_to_all": all_of_them[:, rank],
        "broadcast": all_of_them[size - 1, 0],
    }
    wrong = [name for name, want in expected.items() if not _is_same(results[name], want)]
    return f"wrong numbers of {', '.join(wrong)}" if wrong else ""


def _results(communicator: Communicator, mine: Tensor) -> dict[str, Tensor]:
    """In the same order on every rank, and looked at only after the last."""
    calls: dict[str, Callable[[], Tensor]] = {
        "all_reduce": lambda: communicator.all_reduce(mine[0]),
        "all_gather": lambda: communicator.all_gather(mine[0]),
        "reduce_scatter": lambda: communicator.reduce_scatter(mine),
        "all_to_all": lambda: communicator.all_to_all(mine),
        "broadcast": lambda: communicator.broadcast(mine[0], len(mine) - 1),
    }
    return {name: call().to("cpu") for name, call in calls.items()}


def _is_same(result: Tensor, expected: Tensor) -> bool:
    return result.dtype == expected.dtype and torch.equal(result, expected)
