"""PagePool: which pages of the KV cache nobody uses."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PageIds = NDArray[np.int32]
"""Page ids, `[num_pages] int32`, host."""


class PagePool:
    """The free pages, as a stack: the page freed last is handed out first.

    Attributes:
        num_pages: all pages there are, free or not.
        num_free: pages nobody uses.
    """

    __slots__ = ("_is_free", "_stack", "num_free", "num_pages")

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self.num_free = num_pages
        # The first num_free entries are the free pages; page 0 lies on top.
        self._stack = np.arange(num_pages, dtype=np.int32)[::-1].copy()
        self._is_free = np.ones(num_pages, dtype=np.bool_)

    def allocate(self, count: int) -> PageIds | None:
        """`count` pages, now the caller's, or None if there are not so many."""
        if count > self.num_free:
            return None
        self.num_free -= count
        page_ids = self._stack[self.num_free : self.num_free + count].copy()
        self._is_free[page_ids] = False
        return page_ids

    def free(self, page_ids: PageIds) -> None:
        """Take back pages, each of them once."""
        assert not self._is_free[page_ids].any(), "a page was freed twice"
        self._stack[self.num_free : self.num_free + len(page_ids)] = page_ids
        self._is_free[page_ids] = True
        self.num_free += len(page_ids)

    def free_page_ids(self) -> PageIds:
        """The free pages, a copy."""
        return self._stack[: self.num_free].copy()
