"""Ranks choose as rank 0 does, and know it before anything is packed; a mismatch is no hang."""

import threading

import pytest

from chiplet.api import Tier, Yes
from chiplet.config import DeviceOptions
from chiplet.errors import ConfigError
from chiplet.plugins import Selector, choose_device, discover
from chiplet.plugins.agreement import choose_together
from chiplet.testing.conformance.ranks import on_ranks
from tests.unit.plugins.test_selection import LINEAR, ROTARY, make_selector, offer

__all__ = ["make_selector"]

SIZE = 3


class Board:
    """What ranks in threads lay out for one another."""

    def __init__(self, limit_s=10):
        self.messages, self.barrier = [b""] * SIZE, threading.Barrier(SIZE, timeout=limit_s)


class Meeting:
    def __init__(self, board, rank):
        self.board, self.rank = board, rank

    def exchange(self, message):
        self.board.messages[self.rank] = message
        try:
            self.board.barrier.wait()
            messages = list(self.board.messages)
            self.board.barrier.wait()
        except threading.BrokenBarrierError as error:
            raise TimeoutError from error
        return messages


def ask(selector):
    return selector.linear(LINEAR), selector.op(ROTARY)


def together(make_rank, ask_of=lambda rank: ask, limit_s=10):
    """What each rank gets, or the error that it raises."""
    board = Board(limit_s)
    selectors = [make_rank(rank) for rank in range(SIZE)]

    def work(rank):
        selector = selectors[rank]
        try:
            choose_together(selector, Meeting(board, rank), lambda: ask_of(rank)(selector))
        except ConfigError as error:
            return error
        return selector.plan()

    return on_ranks(SIZE, work)


@pytest.fixture
def make_rank(make_selector):
    """Selectors over two providers, with options by rank."""
    make_selector(offer("fast", Yes(Tier.VENDOR)), offer("mild", Yes(Tier.GENERIC)))

    def make(**options):
        options = DeviceOptions(**options)
        plugins = discover(options)
        return Selector(plugins, choose_device(plugins, options), options)

    return make


def test_all_choose_what_rank_0_chooses(make_rank):
    # As if a measurement had come out differently on rank 0.
    plans = together(lambda rank: make_rank(use=() if rank else ("linear=mild",)))
    assert [each.choices[0].server.provider for each in plans] == ["mild"] * SIZE
    assert [each.choices[0].basis for each in plans] == ["pin", "plan file", "plan file"]
    assert len({each.hash for each in plans}) == 1


def test_a_rank_that_cannot_follow_is_an_error_on_every_rank(make_rank):
    results = together(lambda rank: make_rank(deny=("linear=fast",) if rank == 2 else ()))
    for error in results:
        assert isinstance(error, ConfigError)
        assert "Ranks 2 chose other implementations than rank 0" in error.problem
        assert "linear/qkv_proj by mild 1.2, rank 0 by fast 1.2" in error.problem


def test_a_rank_with_another_pin_says_why_it_cannot_follow(make_rank):
    results = together(lambda rank: make_rank(use=("linear=mild",) if rank == 1 else ()))
    for error in results:
        assert "rank 1: The plan of rank 0 cannot be followed" in str(error)
        assert "pinned is mild" in str(error)


def test_a_rank_that_asks_for_other_work_is_an_error(make_rank):
    def ask_of(rank):
        return (lambda selector: selector.linear(LINEAR)) if rank == 1 else ask

    results = together(lambda rank: make_rank(), ask_of)
    assert all("does not ask for ops/rotary" in str(each) for each in results)


@pytest.mark.parametrize("failing", [0, 1])
def test_a_rank_that_cannot_choose_is_heard_of_by_all(make_rank, failing):
    def ask_of(rank):
        def fail(selector):
            raise ConfigError("no room", remedy="Make some.")

        return fail if rank == failing else ask

    results = together(lambda rank: make_rank(), ask_of)
    assert all(f"rank {failing}: no room Make some." in str(each) for each in results)


def test_a_rank_that_never_comes_is_no_hang(make_rank):
    board = Board(limit_s=0.3)
    with pytest.raises(ConfigError, match="waited for the others"):
        choose_together(make_rank(), Meeting(board, 0), lambda: None)
