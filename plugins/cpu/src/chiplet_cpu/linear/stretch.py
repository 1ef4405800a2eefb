"""What lies between two attentions, for few tokens, in one call of the plugin's own kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from chiplet.api import Product, Stretch, StretchRequest
from chiplet_cpu import native
from chiplet_cpu.linear.panel_linear import PanelLinear

MAX_ROWS = 64
"""As many requests as a step has by default: decodes up to there are recorded."""

_NOTHING = (0,) * 7


class PanelStretch:
    """See `chiplet.api.Stretch`. The same bits as the layers give one by one."""

    max_rows = MAX_ROWS

    def __init__(self, request: StretchRequest) -> None:
        """Take layers that are served from panels."""
        self._kept = request  # the table has addresses alone
        products = [_words(each) for each in request.products]
        norms = [request.norm, request.following_norm]
        words = [*products, *[_NOTHING] * (4 - len(products))]
        addresses = [0 if each is None else each.data_ptr() for each in norms]
        self._table = torch.tensor([word for row in words for word in row] + addresses)
        self._table_address = self._table.data_ptr()
        self._code = native.DTYPE_CODES[request.out.request.dtype]
        self._eps = request.eps
        following = request.following
        self._out_features = None if following is None else following.request.out_features

    def run(self, attended: Tensor, residual: Tensor) -> tuple[Tensor, Tensor | None]:
        """The total, and the product that follows; see `chiplet.api.Stretch.run`."""
        rows, width = attended.shape[0], self._out_features
        total = torch.empty_like(residual)
        following = None if width is None else residual.new_empty((rows, width))
        native.library.stretch(
            self._code,
            self._table_address,
            self._eps,
            attended.data_ptr(),
            residual.data_ptr(),
            rows,
            total.data_ptr(),
            0 if following is None else following.data_ptr(),
        )
        return total, following


def panel_stretch(request: StretchRequest, *, is_rounded: bool) -> Stretch | None:
    """The stretch, if all its layers are on panels.

    Args:
        request: for the stretch.
        is_rounded: one of them rounds activations to eight bits; that one's provider offers it.
    """
    impls = [each.impl for each in request.products if isinstance(each.impl, PanelLinear)]
    types = {each.request.dtype for each in request.products}
    if len(impls) < len(request.products) or len(types) > 1:
        return None
    return PanelStretch(request) if is_rounded == any(each.is_rounded for each in impls) else None


def _words(product: Product) -> tuple[int, ...]:
    """As `kernels/module.cpp` reads them."""
    impl, packed, request = product.impl, product.packed, product.request
    assert isinstance(impl, PanelLinear)
    return (
        int(impl.is_rounded),
        packed.coding,
        packed.address,
        packed.bias_address,
        packed.panel_bytes,
        request.in_features,
        request.out_features,
    )
