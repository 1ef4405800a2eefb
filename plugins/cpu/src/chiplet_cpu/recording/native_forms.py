"""Operations of torch that go to the tape as kernels: each other one is a call from Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from chiplet_cpu import native

Form = Callable[..., bool]
"""Writes an operation with these arguments to the tape; False if it is none of those it knows."""


def _put(
    target: Tensor, places: Sequence[Tensor | None], values: Tensor, accumulate: bool = False
) -> bool:
    """Numbers of 32 bits at places along the only dimension, as in the note of the last tokens."""
    if accumulate or len(places) != 1 or places[0] is None:
        return False
    place = places[0]
    is_known = all(
        each.dtype is torch.int32 and each.dim() == 1 and each.is_contiguous()
        for each in (target, place, values)
    )
    if not is_known or place.shape != values.shape:
        return False
    native.library.put_words(
        target.data_ptr(), len(target), place.data_ptr(), values.data_ptr(), len(place)
    )
    return True


_FORMS: Mapping[Any, Form] = {torch.ops.aten.index_put_.default: _put}


def write_natively(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Write an operation in place as a call of a kernel; False if there is none for it."""
    form = _FORMS.get(func)
    return form is not None and form(*args, **kwargs)
