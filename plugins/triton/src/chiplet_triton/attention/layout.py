"""KV layout of the Triton kernels: the canonical one."""

from __future__ import annotations

from torch import Tensor

from chiplet.api import KvSpec


class TokensInPageLayout:
    """Pages as `[num_pages, 2, page_size, num_kv_heads, row_width]`, keys first."""

    name = "canonical"

    def shape(self, spec: KvSpec, num_pages: int) -> tuple[int, ...]:
        """Shape of all pages of one layer."""
        return (num_pages, 2, spec.page_size, spec.num_kv_heads, spec.row_width)

    def page_bytes(self, spec: KvSpec) -> int:
        """Bytes of one page of one layer."""
        return 2 * spec.page_size * spec.num_kv_heads * spec.row_bytes

    def to_canonical(self, kv: Tensor, page_ids: Tensor, spec: KvSpec) -> Tensor:
        """Copy pages out."""
        return kv[page_ids]

    def from_canonical(self, canonical: Tensor, kv: Tensor, page_ids: Tensor, spec: KvSpec) -> None:
        """Copy pages in. Mutates: `kv`."""
        kv[page_ids] = canonical
