"""Huge pages of memory for the KV cache, once it is large enough to be worth them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from chiplet_cpu import native

MANY_REQUESTS = 8
"""A step of so many reads from all over the cache, where small pages of memory cost a walk through
tables each. Fewer requests would touch more memory in huge pages than they use."""


class HugePages:
    """Asks the system once for each cache; where it grants none, nothing changes."""

    def __init__(self) -> None:
        self._last: tuple[int, ...] = ()

    def ask(self, tensors: Sequence[Tensor]) -> None:
        """Ask, unless these tensors are the last ones asked for. Untouched memory stays so."""
        addresses = tuple(each.data_ptr() for each in tensors)
        if addresses == self._last:
            return
        for tensor in tensors:
            native.library.use_huge_pages(tensor.data_ptr(), tensor.nbytes)
        self._last = addresses
