"""PagePool: every page is handed out once and comes back once."""

from __future__ import annotations

import numpy as np
import pytest

from chiplet.memory.page_pool import PagePool


def test_all_pages_are_handed_out_once() -> None:
    pool = PagePool(10)
    first, second = pool.allocate(4), pool.allocate(6)
    assert first is not None
    assert second is not None
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(10))
    assert pool.num_free == 0


def test_allocating_too_many_takes_none() -> None:
    pool = PagePool(3)
    assert pool.allocate(4) is None
    assert pool.num_free == 3


def test_allocating_nothing_is_allowed_when_empty() -> None:
    pool = PagePool(1)
    pool.allocate(1)
    page_ids = pool.allocate(0)
    assert page_ids is not None
    assert len(page_ids) == 0


def test_freed_pages_are_handed_out_again() -> None:
    pool = PagePool(4)
    page_ids = pool.allocate(4)
    assert page_ids is not None
    pool.free(page_ids[1:3])
    again = pool.allocate(2)
    assert again is not None
    assert set(again.tolist()) == set(page_ids[1:3].tolist())


def test_given_pages_do_not_change_afterwards() -> None:
    pool = PagePool(4)
    page_ids = pool.allocate(2)
    assert page_ids is not None
    before = page_ids.copy()
    pool.free(before)
    pool.allocate(4)
    assert np.array_equal(page_ids, before)


def test_freeing_twice_is_noticed() -> None:
    pool = PagePool(2)
    page_ids = pool.allocate(1)
    assert page_ids is not None
    pool.free(page_ids)
    with pytest.raises(AssertionError, match="twice"):
        pool.free(page_ids)
