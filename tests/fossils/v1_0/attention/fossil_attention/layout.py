from torch import Tensor

from chiplet.api import KvSpec


class PlanesLayout:
    """`[2, num_pages, page_size, num_kv_heads, head_dim]`: a plane of keys, one of values."""

    name = "fossil-planes"

    def shape(self, spec: KvSpec, num_pages: int) -> tuple[int, ...]:
        """Shape of all pages of one layer."""
        return (2, num_pages, spec.page_size, spec.num_kv_heads, spec.head_dim)

    def page_bytes(self, spec: KvSpec) -> int:
        """Bytes of one page of one layer; core counts memory with it."""
        return 2 * spec.page_size * spec.num_kv_heads * spec.head_dim * spec.dtype.size_bytes

    def to_canonical(self, kv: Tensor, page_ids: Tensor, spec: KvSpec) -> Tensor:
        """Copy pages out."""
        return kv[:, page_ids].transpose(0, 1).contiguous()

    def from_canonical(self, canonical: Tensor, kv: Tensor, page_ids: Tensor, spec: KvSpec) -> None:
        """Copy pages in."""
        kv[:, page_ids] = canonical.transpose(0, 1)
