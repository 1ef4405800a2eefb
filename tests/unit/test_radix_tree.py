"""RadixTree against a plain set of prefixes, and the order of eviction."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chiplet.memory.radix_tree import RadixNode, RadixTree, TokenKey, token_key

NO_PAGES = np.empty(0, dtype=np.int32)


def key(*token_ids: int) -> TokenKey:
    return token_key(np.asarray(token_ids, dtype=np.int32))


def pages(*page_ids: int) -> np.ndarray:
    return np.asarray(page_ids, dtype=np.int32)


def put(tree: RadixTree, token_ids: tuple[int, ...], page_ids: np.ndarray) -> RadixNode:
    return tree.insert(tree.root, key(*token_ids), page_ids)[0]


def test_a_match_ends_at_a_page() -> None:
    tree = RadixTree(page_size=2)
    put(tree, (1, 2, 3, 4, 5, 6), pages(10, 11, 12))
    assert tree.match_length(key(1, 2, 3, 4, 5, 6, 7)) == 3
    assert tree.match_length(key(1, 2, 3, 9)) == 1
    assert tree.match_length(key(1, 9)) == 0
    assert tree.match_length(key(1)) == 0
    assert tree.match(key(1, 2, 3, 4, 8, 8))[1].tolist() == [10, 11]
    tree.check()


def test_insert_keeps_what_is_there_and_adds_the_rest() -> None:
    tree = RadixTree(page_size=1)
    put(tree, (1, 2, 3), pages(0, 1, 2))
    node, kept = tree.insert(tree.root, key(1, 2, 7, 8), pages(3, 4, 5, 6))
    assert kept.tolist() == [0, 1, 5, 6]
    assert tree.match(key(1, 2, 7, 8))[0] is node
    assert tree.match(key(1, 2, 3))[1].tolist() == [0, 1, 2]
    assert tree.num_pages == 5
    tree.check()


def test_a_chunked_prompt_becomes_one_edge() -> None:
    tree = RadixTree(page_size=1)
    node = tree.root
    tree.lock(node)
    for i in range(5):
        below, kept = tree.insert(node, key(i, i), pages(2 * i, 2 * i + 1))
        assert kept.tolist() == [2 * i, 2 * i + 1]
        tree.lock(below)
        tree.unlock(node)
        node = below
        tree.check()
    assert len(list(tree.nodes())) == 2
    assert tree.num_evictable_pages == 0


def test_a_leaf_that_another_lease_holds_does_not_grow() -> None:
    tree = RadixTree(page_size=1)
    leaf = put(tree, (1, 2), pages(0, 1))
    tree.lock(leaf)
    tree.lock(leaf)
    below, _ = tree.insert(leaf, key(3), pages(2))
    assert below is not leaf
    assert tree.num_evictable_pages == 1
    assert tree.evict(9).tolist() == [2]
    tree.check()


def test_splitting_keeps_the_lock_of_both_parts() -> None:
    tree = RadixTree(page_size=1)
    leaf = put(tree, (1, 2, 3, 4), pages(0, 1, 2, 3))
    tree.lock(leaf)
    upper, _ = tree.match(key(1, 2, 9))
    assert upper is not leaf
    assert tree.evict(9).tolist() == []
    tree.unlock(leaf)
    assert sorted(tree.evict(9).tolist()) == [0, 1, 2, 3]
    tree.check()


def test_eviction_takes_the_least_recently_used_leaf_from_its_end() -> None:
    tree = RadixTree(page_size=1)
    old = put(tree, (1, 2, 3), pages(0, 1, 2))
    put(tree, (5, 6), pages(3, 4))
    assert tree.evict(1).tolist() == [2]
    tree.lock(old)
    tree.unlock(old)
    assert tree.evict(2).tolist() == [3, 4]
    assert tree.match_length(key(1, 2)) == 2
    assert tree.match_length(key(5, 6)) == 0
    tree.check()


def test_a_parent_goes_after_its_children() -> None:
    tree = RadixTree(page_size=1)
    put(tree, (1, 2), pages(0, 1))
    put(tree, (1, 3), pages(8, 2))
    put(tree, (1, 4), pages(8, 3))
    assert [tree.evict(1).tolist()[0] for _ in range(4)] == [1, 2, 3, 0]
    assert tree.num_pages == 0
    assert tree.evict(1).tolist() == []
    tree.check()


def test_a_locked_path_is_never_evicted() -> None:
    tree = RadixTree(page_size=1)
    node = put(tree, (1, 2, 3), pages(0, 1, 2))
    put(tree, (1, 2, 4), pages(8, 9, 3))
    tree.lock(node)
    assert tree.num_evictable_pages == 1
    assert tree.evict(9).tolist() == [3]
    tree.check()


def test_unlocking_too_often_is_noticed() -> None:
    tree = RadixTree(page_size=1)
    node = put(tree, (1,), pages(0))
    with pytest.raises(AssertionError, match="unlocked"):
        tree.unlock(node)


def test_the_eviction_queue_does_not_grow_without_bound() -> None:
    tree = RadixTree(page_size=1)
    node = put(tree, (1,), pages(0))
    for _ in range(10_000):
        tree.lock(node)
        tree.unlock(node)
    assert len(tree._heap) < 200
    assert tree.evict(1).tolist() == [0]


@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize("node_tokens", [128, 131_072])
def test_a_prompt_of_128k_tokens_matches_over_short_and_long_edges(
    page_size: int, node_tokens: int
) -> None:
    tree = RadixTree(page_size=page_size)
    tokens = np.random.default_rng(0).integers(0, 50_000, 131_072 + 1, dtype=np.int32)
    for end in range(node_tokens, 131_073, node_tokens):
        # A branch after every node keeps the edges short.
        branch = np.concatenate([tokens[:end], np.full(page_size, end, dtype=np.int32)])
        tree.insert(
            tree.root, token_key(branch), np.arange(len(branch) // page_size, dtype=np.int32)
        )
    prompt = token_key(tokens)
    assert len(list(tree.nodes())) > 131_072 // node_tokens
    _, page_ids = tree.match(prompt)
    assert len(page_ids) == 131_072 // page_size


SEQUENCES = st.lists(st.integers(0, 2), min_size=0, max_size=12)


class NaiveTree:
    """All page-aligned prefixes, spelled out."""

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self.pages: dict[tuple[int, ...], int] = {}

    def match(self, tokens: tuple[int, ...]) -> list[int]:
        found: list[int] = []
        for end in range(self.page_size, len(tokens) + 1, self.page_size):
            if tokens[:end] not in self.pages:
                break
            found.append(self.pages[tokens[:end]])
        return found

    def insert(self, tokens: tuple[int, ...], page_ids: list[int]) -> None:
        for index, page_id in enumerate(page_ids):
            self.pages.setdefault(tokens[: (index + 1) * self.page_size], page_id)

    def remove(self, page_ids: list[int]) -> None:
        for page_id in page_ids:
            del self.pages[next(each for each, held in self.pages.items() if held == page_id)]
        for prefix in self.pages:
            shorter = prefix[: -self.page_size]
            assert not shorter or shorter in self.pages, "a prefix went before its continuation"


@settings(max_examples=150, deadline=None)
@given(
    page_size=st.integers(1, 3),
    actions=st.lists(
        st.tuples(st.sampled_from(["insert", "match", "lock", "unlock", "evict"]), SEQUENCES),
        max_size=40,
    ),
)
def test_the_tree_equals_a_set_of_prefixes(
    page_size: int, actions: list[tuple[str, list[int]]]
) -> None:
    tree, naive = RadixTree(page_size), NaiveTree(page_size)
    locked: list[tuple[RadixNode, tuple[int, ...]]] = []
    next_page = 0
    for action, drawn in actions:
        tokens = tuple(drawn[: len(drawn) // page_size * page_size])
        if action == "insert":
            new = list(range(next_page, next_page + len(tokens) // page_size))
            next_page += len(new)
            naive.insert(tokens, new)
            kept = tree.insert(tree.root, key(*tokens), pages(*new))[1]
            assert kept.tolist() == naive.match(tokens)
        elif action == "match":
            assert tree.match(key(*drawn))[1].tolist() == naive.match(tuple(drawn))
        elif action == "lock":
            node, found = tree.match(key(*drawn))
            tree.lock(node)
            locked.append((node, tuple(drawn[: len(found) * page_size])))
        elif action == "unlock" and locked:
            tree.unlock(locked.pop(len(drawn) % len(locked))[0])
        elif action == "evict":
            naive.remove(tree.evict(len(drawn)).tolist())
        tree.check()
        assert tree.num_pages == len(naive.pages)
        for _, held in locked:
            assert len(naive.match(held)) == len(held) // page_size, "locked pages were evicted"
    needed = {held[:end] for _, held in locked for end in range(page_size, len(held) + 1)}
    assert tree.num_evictable_pages == sum(each not in needed for each in naive.pages)
