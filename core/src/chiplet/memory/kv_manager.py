"""KvManager: the only door to the pages of the KV cache.

A page is in exactly one of three places: free in the pool, in the radix tree, or owned by one
lease. A lease's first pages may be the tree's, which it keeps from eviction; its others are its
own until `commit` or `release` offers them to the tree.

Pages return to the pool while steps that read them may still be in flight. That is safe because a
runner runs steps in the order of their launch: who gets the pages next writes them later.
"""

from __future__ import annotations

import numpy as np

from chiplet.memory.page_pool import PageIds, PagePool
from chiplet.memory.radix_tree import TOKEN_BYTES, RadixNode, RadixTree, TokenKey


class KvLease:
    """Pages that one request may use; only KvManager changes it.

    Attributes:
        num_pages: pages it holds.
        num_cached_tokens: tokens at the start that the tree had when the lease was made.
        node: where in the tree its shared pages end; pinned by the lease.
        num_shared_pages: pages at the start that are the tree's; the others are the lease's own.
        buffer: the pages, with room to grow behind them.
    """

    __slots__ = ("buffer", "node", "num_cached_tokens", "num_pages", "num_shared_pages")

    def __init__(self, node: RadixNode, pages: PageIds, num_shared: int, page_size: int) -> None:
        self.num_pages = len(pages)
        self.num_cached_tokens = num_shared * page_size
        self.node = node
        self.num_shared_pages = num_shared
        self.buffer = pages

    @property
    def page_ids(self) -> PageIds:
        """The pages in order, `[num_pages] int32`; a view that holds until the next change."""
        return self.buffer[: self.num_pages]


class KvManager:
    """Lends pages to requests and keeps those of ended ones for others to share.

    Attributes:
        num_pages: all pages there are.
        page_size: tokens in a page.
        num_evicted_pages: pages given up by the tree so far.
    """

    def __init__(self, *, num_pages: int, page_size: int, radix_cache: bool = True) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self.num_evicted_pages = 0
        self._is_sharing = radix_cache
        self._page_bytes = page_size * TOKEN_BYTES
        self._pool = PagePool(num_pages)
        self._tree = RadixTree(page_size)
        self._leases: set[KvLease] = set()

    @property
    def is_sharing(self) -> bool:
        """Whether requests share the pages of common prefixes."""
        return self._is_sharing

    @property
    def num_free_pages(self) -> int:
        """Pages that hold nothing."""
        return self._pool.num_free

    @property
    def num_cached_pages(self) -> int:
        """Pages that the tree keeps though no lease needs them; they are given up on demand."""
        return self._tree.num_evictable_pages

    @property
    def num_leases(self) -> int:
        """Leases not released yet."""
        return len(self._leases)

    @property
    def generation(self) -> int:
        """Changes when `match` may have another answer than before."""
        return self._tree.generation

    def pages_for(self, num_tokens: int) -> int:
        """Pages that so many tokens take."""
        return -(-num_tokens // self.page_size)

    def match(self, key: TokenKey) -> int:
        """Tokens that `reserve` would find in the tree; changes nothing.

        The last token does not count: it is always computed, to have logits to pick from.
        """
        return self._tree.match_length(self._matchable(key)) * self.page_size

    def reserve(
        self, key: TokenKey, *, may_match: bool = True, num_headroom_pages: int = 0
    ) -> KvLease | None:
        """A lease with pages for all tokens of `key`, or None if there are too few.

        Args:
            key: the request's tokens.
            may_match: whether the tree's pages serve; else all tokens are computed.
            num_headroom_pages: pages that must be left, free or cached.
        """
        node, shared = self._tree.match(self._matchable(key) if may_match else b"")
        self._tree.lock(node)
        num_new = self.pages_for(len(key) // TOKEN_BYTES) - len(shared)
        own = None
        if num_new + num_headroom_pages <= self.num_free_pages + self.num_cached_pages:
            own = self._allocate(num_new)
        if own is None:
            self._tree.unlock(node)
            return None
        lease = KvLease(node, np.concatenate([shared, own]), len(shared), self.page_size)
        self._leases.add(lease)
        return lease

    def extend(self, lease: KvLease, num_tokens: int) -> bool:
        """Make `lease` hold pages for `num_tokens` tokens; False, and no change, if there are
        too few.
        """
        num_pages = self.pages_for(num_tokens)
        if num_pages <= lease.num_pages:
            return True
        own = self._allocate(num_pages - lease.num_pages)
        if own is None:
            return False
        if num_pages > len(lease.buffer):
            room = np.empty(max(num_pages - lease.num_pages, lease.num_pages), dtype=np.int32)
            lease.buffer = np.concatenate([lease.page_ids, room])
        lease.buffer[lease.num_pages : num_pages] = own
        lease.num_pages = num_pages
        return True

    def commit(self, lease: KvLease, key: TokenKey, num_tokens: int) -> int:
        """Offer the full pages among the first `num_tokens` tokens to the tree.

        Pages which the tree got from another request meanwhile take the place of the lease's own,
        which become free.

        Returns:
            The index of the first page that was replaced; `lease.num_pages` if none was.
        """
        first, end = lease.num_shared_pages, num_tokens // self.page_size
        if not self._is_sharing or end <= first:
            return lease.num_pages
        own = lease.page_ids[first:end]
        new_key = key[first * self._page_bytes : end * self._page_bytes]
        node, kept = self._tree.insert(lease.node, new_key, own)
        self._tree.lock(node)
        self._tree.unlock(lease.node)
        lease.node, lease.num_shared_pages = node, end
        replaced = np.flatnonzero(own != kept)
        if not len(replaced):
            return lease.num_pages
        self._pool.free(own[replaced])
        own[:] = kept
        return first + int(replaced[0])

    def release(self, lease: KvLease, key: TokenKey, num_tokens: int) -> None:
        """End a lease: its first `num_tokens` tokens are computed, the tree keeps their pages."""
        self.commit(lease, key, num_tokens)
        self._leases.remove(lease)
        self._pool.free(lease.page_ids[lease.num_shared_pages :])
        self._tree.unlock(lease.node)
        lease.num_pages = lease.num_shared_pages = 0

    def check(self) -> None:
        """Assert that every page is in exactly one place and that pins and leases agree."""
        self._tree.check()
        in_tree = [node.page_ids for node in self._tree.nodes()]
        owned = [lease.page_ids[lease.num_shared_pages :] for lease in self._leases]
        places = np.concatenate([self._pool.free_page_ids(), *in_tree, *owned])
        assert np.array_equal(np.sort(places), np.arange(self.num_pages)), "pages lost or doubled"
        _check_pins(self._tree, self._leases)

    def _matchable(self, key: TokenKey) -> TokenKey:
        num_pages = (len(key) - 1) // self._page_bytes if self._is_sharing else 0
        return key[: num_pages * self._page_bytes]

    def _allocate(self, count: int) -> PageIds | None:
        missing = count - self._pool.num_free
        if missing > self.num_cached_pages:
            return None
        if missing > 0:
            evicted = self._tree.evict(missing)
            self.num_evicted_pages += len(evicted)
            self._pool.free(evicted)
        return self._pool.allocate(count)


def _check_pins(tree: RadixTree, leases: set[KvLease]) -> None:
    pins = dict.fromkeys(tree.nodes(), 0)
    pins[tree.root] = 1
    for lease in leases:
        pins[lease.node] += 1
        path: list[PageIds] = []
        node: RadixNode | None = lease.node
        while node is not None:
            path.insert(0, node.page_ids)
            node = node.parent
        shared = lease.page_ids[: lease.num_shared_pages]
        assert np.array_equal(np.concatenate(path), shared), "a lease and the tree disagree"
    for node in list(pins)[::-1]:
        # Children come after their parents, so a child's count is complete here.
        if node.parent is not None and pins[node]:
            pins[node.parent] += 1
    for node, expected in pins.items():
        assert node.num_pins == expected, "a pin was lost or kept"
