"""Ranks that live in one program, on platforms that can and cannot span several devices."""

import pytest
import torch

from chiplet.api import Dtype, GroupKind
from chiplet.errors import ConfigError
from chiplet.parallel.group import ONE_RANK
from chiplet.parallel.one_program import one_program_topology, ranks_of_one_program
from chiplet.reference.platform import ReferencePlatform


class Spanning(ReferencePlatform):
    """A platform with four devices."""

    def span(self, num_ranks):
        if num_ranks > 4:
            raise ValueError("this host has 4 devices")
        self.spanned = num_ranks

    def join_shards(self, shards):
        return torch.stack(list(shards))


class Communicator:
    def __init__(self, request):
        self.request, self.is_connected = request, False

    def connect(self):
        self.is_connected = True


def ranks_on(platform, size):
    topology = one_program_topology(size)
    return ranks_of_one_program(platform, topology, Communicator, Dtype.BFLOAT16)


def test_one_rank_needs_nobody():
    assert ranks_on(ReferencePlatform(), 1) is ONE_RANK


def test_the_platform_takes_a_device_per_rank():
    platform = Spanning()
    ranks = ranks_on(platform, 4)
    assert platform.spanned == 4
    assert ranks.local_ranks == (0, 1, 2, 3)
    assert ranks.communicator.is_connected
    assert ranks.communicator.request.group is GroupKind.TENSOR
    assert ranks.communicator.request.is_one_program
    assert ranks.join([torch.zeros(2)] * 4).shape == (4, 2)


def test_what_cannot_be_spanned_is_refused():
    with pytest.raises(ConfigError, match="tensor-parallel-size is 8: this host has 4 devices"):
        ranks_on(Spanning(), 8)
