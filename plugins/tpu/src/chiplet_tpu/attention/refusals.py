"""What attention kernels refuse, with the reason and the remedy."""

from __future__ import annotations

from collections.abc import Sequence

from chiplet.api import AttentionRequest, No


def refused_head_dim(request: AttentionRequest, allowed: Sequence[int]) -> No | None:
    """A refusal of a head dim that the kernel was not written for."""
    if request.head_dim in allowed:
        return None
    listed = ", ".join(map(str, allowed))
    return No.because("head_dim", f"head dim {request.head_dim}; allowed: {listed}")


def refused_page_size(request: AttentionRequest, *, is_allowed: bool, allowed: str) -> No | None:
    """A refusal of pages that the kernel cannot walk over."""
    if is_allowed:
        return None
    text = f"pages of {request.kv.page_size} tokens; allowed: {allowed}"
    return No.because("page_size", text, "set --page-size")
