"""RadixTree: which token sequences have their keys and values in pages, for others to share.

Sequences are compared as bytes (`token_key`): a whole edge is compared by one `memcmp`, and the
bytes of a page are the key under which a node's children are found. All lengths are multiples of
a page; a node's page always belongs to its whole path, since keys and values depend on all tokens
before them.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush

import numpy as np

from chiplet.memory.page_pool import PageIds
from chiplet.request import TokenIds

TokenKey = bytes
"""Token ids as the tree compares them: four bytes each, see `token_key`."""

TOKEN_BYTES = 4


def token_key(token_ids: TokenIds) -> TokenKey:
    """Token ids in the form that the tree compares."""
    assert token_ids.dtype == np.int32, token_ids.dtype
    return token_ids.tobytes()


class RadixNode:
    """A token edge mapped to pages.

    Attributes:
        parent: None at the root and in a node that left the tree.
        edge: tokens from the parent to here.
        page_ids: their pages.
        children: by the bytes of the first page of their edges.
        num_pins: leases that end here, plus children with pins. A node with pins stays, and so do
            all above it.
        last_use: the tree's clock when the last pin went.
    """

    __slots__ = ("children", "edge", "last_use", "num_pins", "page_ids", "parent")

    def __init__(self, parent: RadixNode | None, edge: TokenKey, page_ids: PageIds) -> None:
        self.parent = parent
        self.edge = edge
        self.page_ids = page_ids
        self.children: dict[TokenKey, RadixNode] = {}
        self.num_pins = 0
        self.last_use = 0


class RadixTree:
    """Match, split, insert, lock, and eviction of what was used least recently.

    Attributes:
        root: the empty sequence; never evicted.
        num_pages: pages in the tree.
        num_evictable_pages: those that no lease needs.
        generation: counts changes of what a match can find.
    """

    def __init__(self, page_size: int) -> None:
        self._page_bytes = page_size * TOKEN_BYTES
        self.root = RadixNode(None, b"", np.empty(0, dtype=np.int32))
        self.root.num_pins = 1
        self.num_pages = 0
        self.num_evictable_pages = 0
        self.generation = 0
        self._num_nodes = 1
        self._clock = 0
        # Leaves without pins by last use. Entries that no longer hold are dropped when they
        # surface; see _is_evictable. The middle number makes entries unequal.
        self._heap: list[tuple[int, int, RadixNode]] = []
        self._num_offers = 0

    def match_length(self, key: TokenKey) -> int:
        """Pages at the start of `key` that the tree has; changes nothing."""
        _, position, common = self._descend(self.root, key)
        return (position + common) // self._page_bytes

    def match(self, key: TokenKey) -> tuple[RadixNode, PageIds]:
        """The node where the longest match of `key` ends, and the pages on the way there.

        A match that ends within an edge splits it.
        """
        node, position, common = self._descend(self.root, key)
        if common:
            node = self._split(node.children[key[position : position + self._page_bytes]], common)
        return node, _last_pages(node, (position + common) // self._page_bytes)

    def insert(
        self, start: RadixNode, key: TokenKey, page_ids: PageIds
    ) -> tuple[RadixNode, PageIds]:
        """Make the tree hold `key` below `start`: the node where it ends, and the pages there.

        What the tree has already stays; there the returned pages differ from those given, which
        remain the caller's. The others are the tree's from now on.

        Args:
            start: the root, or a node with a pin of the caller's.
            key: tokens after `start`, full pages only.
            page_ids: their pages.
        """
        node, position, common = self._descend(start, key)
        if common:
            node = self._split(node.children[key[position : position + self._page_bytes]], common)
            position += common
        if position < len(key):
            new_page_ids = page_ids[position // self._page_bytes :]
            node = self._append(node, key[position:], new_page_ids, is_start=node is start)
        return node, _last_pages(node, len(page_ids))

    def lock(self, node: RadixNode) -> None:
        """Keep `node` and all above it until `unlock`."""
        current: RadixNode | None = node
        while current is not None:
            current.num_pins += 1
            if current.num_pins > 1:
                return
            self.num_evictable_pages -= len(current.page_ids)
            current = current.parent

    def unlock(self, node: RadixNode) -> None:
        """Take back one `lock` of `node`."""
        current: RadixNode | None = node
        while current is not None:
            assert current.num_pins > 0, "unlocked more often than locked"
            current.num_pins -= 1
            if current.num_pins:
                return
            self.num_evictable_pages += len(current.page_ids)
            self._touch(current)
            current = current.parent

    def evict(self, num_pages: int) -> PageIds:
        """Give up pages, least recently used first: `num_pages`, or all that nobody needs.

        A leaf gives up its end and keeps its beginning, which more sequences are likely to share.
        """
        given_up: list[PageIds] = [np.empty(0, dtype=np.int32)]
        wanted = min(num_pages, self.num_evictable_pages)
        while wanted > 0:
            last_use, _, node = self._heap[0]
            if not _is_evictable(node, last_use):
                heappop(self._heap)
                continue
            count = min(wanted, len(node.page_ids))
            given_up.append(self._cut_end(node, count))
            wanted -= count
        return np.concatenate(given_up)

    def nodes(self) -> Iterator[RadixNode]:
        """All nodes, parents before children."""
        pending = [self.root]
        while pending:
            node = pending.pop()
            yield node
            pending.extend(node.children.values())

    def check(self) -> None:
        """Assert that counts, pins, keys and the eviction order are consistent."""
        num_pages = num_evictable = num_nodes = 0
        on_heap = {(last_use, id(node)) for last_use, _, node in self._heap}
        for node in self.nodes():
            num_nodes += 1
            num_pages += len(node.page_ids)
            assert len(node.edge) == len(node.page_ids) * self._page_bytes
            assert node.num_pins >= sum(child.num_pins > 0 for child in node.children.values())
            for key, child in node.children.items():
                assert child.parent is node
                assert child.edge[: self._page_bytes] == key
            if not node.num_pins:
                num_evictable += len(node.page_ids)
                assert node.children or (node.last_use, id(node)) in on_heap
        assert num_pages == self.num_pages
        assert num_evictable == self.num_evictable_pages
        assert num_nodes == self._num_nodes

    def _descend(self, start: RadixNode, key: TokenKey) -> tuple[RadixNode, int, int]:
        """Follow `key`: the last node reached, the bytes matched up to there, and those matched
        within the edge of the next one.
        """
        node, position, page_bytes = start, 0, self._page_bytes
        while True:
            child = node.children.get(key[position : position + page_bytes])
            if child is None:
                return node, position, 0
            end = position + len(child.edge)
            if key[position:end] != child.edge:
                common = _common_bytes(key[position:end], child.edge)
                return node, position, common - common % page_bytes
            node, position = child, end

    def _split(self, node: RadixNode, num_bytes: int) -> RadixNode:
        """A new node above `node`, which keeps its end: leases point at the ends of edges."""
        parent = node.parent
        assert parent is not None
        num_pages = num_bytes // self._page_bytes
        upper = RadixNode(parent, node.edge[:num_bytes], node.page_ids[:num_pages].copy())
        upper.num_pins = 1 if node.num_pins else 0
        upper.last_use = node.last_use
        parent.children[upper.edge[: self._page_bytes]] = upper
        node.parent = upper
        node.edge = node.edge[num_bytes:]
        node.page_ids = node.page_ids[num_pages:].copy()
        upper.children[node.edge[: self._page_bytes]] = node
        self._num_nodes += 1
        return upper

    def _append(
        self, node: RadixNode, key: TokenKey, page_ids: PageIds, *, is_start: bool
    ) -> RadixNode:
        self.generation += 1
        self.num_pages += len(page_ids)
        # A prompt computed in many chunks is to become one long edge. The edge of a leaf may grow
        # while no lease but the caller's ends there, since it would hold the new pages too.
        num_pins_of_caller = 1 if is_start else 0
        if node.children or node is self.root or node.num_pins != num_pins_of_caller:
            child = RadixNode(node, key, page_ids.copy())
            node.children[key[: self._page_bytes]] = child
            self._num_nodes += 1
            node = child
        else:
            node.edge += key
            node.page_ids = np.concatenate([node.page_ids, page_ids])
        if not node.num_pins:
            self.num_evictable_pages += len(page_ids)
            self._touch(node)
        return node

    def _cut_end(self, leaf: RadixNode, num_pages: int) -> PageIds:
        self.generation += 1
        self.num_pages -= num_pages
        self.num_evictable_pages -= num_pages
        keep = len(leaf.page_ids) - num_pages
        cut = leaf.page_ids[keep:]
        if keep:
            leaf.page_ids = leaf.page_ids[:keep]
            leaf.edge = leaf.edge[: keep * self._page_bytes]
            return cut
        parent = leaf.parent
        assert parent is not None
        del parent.children[leaf.edge[: self._page_bytes]]
        leaf.parent = None
        self._num_nodes -= 1
        self._offer(parent)
        return cut

    def _touch(self, node: RadixNode) -> None:
        """Note that `node`, without pins, was in use until now."""
        self._clock += 1
        node.last_use = self._clock
        self._offer(node)

    def _offer(self, node: RadixNode) -> None:
        """Put `node` in line for eviction if it is a leaf without pins."""
        if node.num_pins or node.children:
            return
        self._num_offers += 1
        heappush(self._heap, (node.last_use, self._num_offers, node))
        if len(self._heap) > 4 * self._num_nodes + 64:
            self._heap = [entry for entry in self._heap if _is_evictable(entry[2], entry[0])]
            heapify(self._heap)


def _is_evictable(node: RadixNode, last_use: int) -> bool:
    is_current = node.last_use == last_use and node.parent is not None
    return is_current and not node.children and not node.num_pins


def _common_bytes(a: TokenKey, b: TokenKey) -> int:
    length = min(len(a), len(b))
    if a[:length] == b[:length]:
        return length
    differs = np.frombuffer(a, np.uint8, length) != np.frombuffer(b, np.uint8, length)
    return int(differs.argmax())


def _last_pages(node: RadixNode, count: int) -> PageIds:
    """The last `count` pages of the sequence that ends at `node`."""
    parts: list[PageIds] = []
    missing = count
    while missing > 0:
        parts.append(node.page_ids)
        missing -= len(node.page_ids)
        assert node.parent is not None
        node = node.parent
    parts.append(np.empty(0, dtype=np.int32))
    return np.concatenate(parts[::-1])[-missing:]
