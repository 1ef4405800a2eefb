"""KvManager: leases, sharing, and the place of every page."""

from __future__ import annotations

import numpy as np
import pytest

from chiplet.memory.kv_manager import KvManager
from chiplet.memory.radix_tree import TokenKey, token_key


def key(*token_ids: int) -> TokenKey:
    return token_key(np.asarray(token_ids, dtype=np.int32))


def manager(num_pages: int, page_size: int = 2, radix_cache: bool = True) -> KvManager:
    return KvManager(num_pages=num_pages, page_size=page_size, radix_cache=radix_cache)


def test_a_released_prompt_is_found_again() -> None:
    kv = manager(8)
    prompt = key(1, 2, 3, 4, 5)
    lease = kv.reserve(prompt)
    assert lease is not None
    assert (lease.num_pages, lease.num_cached_tokens) == (3, 0)
    page_ids = lease.page_ids.tolist()
    kv.release(lease, prompt, 5)
    assert (kv.num_free_pages, kv.num_cached_pages) == (6, 2)
    again = kv.reserve(prompt)
    assert again is not None
    assert again.num_cached_tokens == 4
    assert again.page_ids.tolist()[:2] == page_ids[:2]
    kv.check()


def test_the_last_token_is_never_taken_from_the_tree() -> None:
    kv = manager(8)
    prompt = key(1, 2, 3, 4)
    lease = kv.reserve(prompt)
    assert lease is not None
    kv.release(lease, prompt, 4)
    assert kv.match(prompt) == 2
    assert kv.match(key(1, 2, 3, 4, 5)) == 4


def test_uncomputed_pages_are_not_offered() -> None:
    kv = manager(8)
    prompt = key(1, 2, 3, 4, 5, 6, 7)
    lease = kv.reserve(prompt)
    assert lease is not None
    kv.release(lease, prompt, 3)
    assert kv.match(prompt) == 2
    assert kv.num_free_pages == 7
    kv.check()


def test_without_sharing_nothing_is_kept() -> None:
    kv = manager(8, radix_cache=False)
    prompt = key(1, 2, 3, 4, 5)
    lease = kv.reserve(prompt)
    assert lease is not None
    kv.commit(lease, prompt, 4)
    kv.release(lease, prompt, 5)
    assert kv.match(prompt) == 0
    assert kv.num_free_pages == 8
    kv.check()


def test_a_request_may_decline_the_tree_and_then_gets_its_pages() -> None:
    kv = manager(8)
    prompt = key(1, 2, 3, 4, 5)
    first = kv.reserve(prompt)
    assert first is not None
    kv.commit(first, prompt, 4)
    second = kv.reserve(prompt, may_match=False)
    assert second is not None
    assert second.num_cached_tokens == 0
    kv.check()
    assert kv.commit(second, prompt, 4) == 0
    assert second.page_ids.tolist()[:2] == first.page_ids.tolist()[:2]
    assert kv.num_free_pages == 8 - 4
    kv.check()


def test_only_duplicates_are_replaced() -> None:
    kv = manager(12)
    a, b = key(1, 2, 3, 4, 5, 6), key(1, 2, 3, 4, 7, 8)
    first, second = kv.reserve(a), kv.reserve(b)
    assert first is not None
    assert second is not None
    own = second.page_ids.tolist()
    assert kv.commit(first, a, 6) == first.num_pages
    assert kv.commit(second, b, 2) == 0
    assert kv.commit(second, b, 6) == 1
    assert second.page_ids.tolist() == [*first.page_ids.tolist()[:2], own[2]]
    kv.check()
    kv.release(first, a, 6)
    kv.release(second, b, 6)
    assert kv.num_cached_pages == 4
    kv.check()


def test_reserve_evicts_what_nobody_needs_and_counts_it() -> None:
    kv = manager(4)
    old = key(1, 2, 3, 4, 5, 6)
    lease = kv.reserve(old)
    assert lease is not None
    kv.release(lease, old, 6)
    new = kv.reserve(key(7, 7, 7, 7))
    assert new is not None
    assert kv.num_evicted_pages == 1
    assert kv.match(key(1, 2, 3, 4, 5, 6, 7)) == 4
    kv.check()


def test_reserve_without_room_changes_nothing() -> None:
    kv = manager(4)
    prompt = key(1, 2, 3, 4)
    lease = kv.reserve(prompt)
    assert lease is not None
    assert kv.reserve(key(5, 6, 7, 8, 9)) is None
    assert kv.reserve(key(5, 6, 7), num_headroom_pages=1) is None
    assert kv.num_free_pages == 2
    kv.check()
    assert kv.reserve(key(5, 6, 7)) is not None


def test_matched_pages_do_not_count_as_room() -> None:
    kv = manager(4)
    prompt = key(1, 2, 3, 4, 5, 6)
    lease = kv.reserve(prompt)
    assert lease is not None
    kv.release(lease, prompt, 6)
    assert kv.num_cached_pages == 3
    assert kv.reserve(key(1, 2, 3, 4, 5, 6, 7, 8, 9)) is None
    assert kv.num_cached_pages == 3
    kv.check()


def test_extend_grows_page_by_page() -> None:
    kv = manager(5, page_size=1)
    lease = kv.reserve(key(1))
    assert lease is not None
    for num_tokens in range(1, 6):
        assert kv.extend(lease, num_tokens)
        assert len(set(lease.page_ids.tolist())) == num_tokens
        kv.check()
    assert not kv.extend(lease, 6)
    assert lease.num_pages == 5
    kv.check()


def test_extend_evicts() -> None:
    kv = manager(2, page_size=1)
    cached, running = kv.reserve(key(1)), kv.reserve(key(2))
    assert cached is not None
    assert running is not None
    kv.release(cached, key(1), 1)
    assert kv.extend(running, 2)
    assert kv.num_evicted_pages == 1


def test_a_wrong_place_is_noticed() -> None:
    kv = manager(4)
    lease = kv.reserve(key(1, 2, 3, 4))
    assert lease is not None
    lease.page_ids[1] = lease.page_ids[0]
    with pytest.raises(AssertionError, match="lost or doubled"):
        kv.check()


def test_pages_for_rounds_up() -> None:
    kv = manager(4, page_size=16)
    assert [kv.pages_for(n) for n in (0, 1, 16, 17)] == [0, 1, 1, 2]
