"""KV layout of the CPU plugin: in each page, the tokens of one head lie together."""

from __future__ import annotations

from torch import Tensor

from chiplet.api import KvSpec


class HeadsInPageLayout:
    """Pages as `[num_pages, 2, num_kv_heads, page_size, head_dim]`, keys first.

    A gather of rows `[page_size * head_dim]` yields keys and values with one head's tokens
    contiguous, which is the order that matrix products read; and a page stays in one piece.
    """

    name = "heads-in-page"

    def shape(self, spec: KvSpec, num_pages: int) -> tuple[int, ...]:
        """Shape of all pages of one layer."""
        return (num_pages, 2, spec.num_kv_heads, spec.page_size, spec.head_dim)

    def page_bytes(self, spec: KvSpec) -> int:
        """Bytes of one page of one layer."""
        return 2 * spec.num_kv_heads * spec.page_size * spec.head_dim * spec.dtype.size_bytes

    def to_canonical(self, kv: Tensor, page_ids: Tensor, spec: KvSpec) -> Tensor:
        """Copy pages out."""
        return kv[page_ids].transpose(2, 3).contiguous()

    def from_canonical(self, canonical: Tensor, kv: Tensor, page_ids: Tensor, spec: KvSpec) -> None:
        """Copy pages in. Mutates: `kv`."""
        kv[page_ids] = canonical.transpose(2, 3)
