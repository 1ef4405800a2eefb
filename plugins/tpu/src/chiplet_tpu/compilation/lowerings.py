"""torchax's environment, fit for core's code, which runs in torch's inference mode.

In that mode torch hands composite operations on undivided, which torchax expects to meet in parts,
and refuses the views that torchax makes. So every operation leaves the mode for its duration; there
is no autograd either way.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._C import DisableTorchFunction
from torch.utils import _pytree as pytree
from torch.utils._mode_utils import no_dispatch
from torchax.ops.jtorch import getitem
from torchax.ops.mappings import t2j_dtype
from torchax.tensor import Environment, OperatorNotFound, XLAFunctionMode
from torchax.tensor import Tensor as JaxTensor
from torchax.view import View


class _OutsideInference(XLAFunctionMode):
    """Takes each torch function out of inference mode, then does what torchax does."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.promote_types:  # concerns no array
            with no_dispatch(), DisableTorchFunction():
                return func(*args)
        with torch.inference_mode(False), torch.no_grad():
            return super().__torch_function__(func, types, args, kwargs)


class StepEnvironment(Environment):
    """torchax's environment, for torch code that runs in inference mode."""

    def __init__(self) -> None:
        super().__init__()
        self._function_mode = _OutsideInference(self)
        self.override_op_definition(torch.ops.aten.square, _square)
        self.override_op_definition(torch.ops.aten.searchsorted.Tensor, _searchsorted)
        self.override_op_definition(torch.Tensor.view, _view, is_view_op=True)
        for operation in (torch.Tensor.narrow, torch.narrow):
            self.override_op_definition(operation, _narrow, is_view_op=True)
        self.override_op_definition(torch.Tensor.__getitem__, _getitem, is_view_op=True)


@cache
def environment() -> StepEnvironment:
    """The one environment of this process."""
    return StepEnvironment()


def _square(x: Tensor) -> Tensor:
    return x * x


def _searchsorted(
    ordered: Tensor, values: Tensor, *, right: bool = False, out_int32: bool = False
) -> Tensor:
    before = ordered.unsqueeze(-2)
    at = values.unsqueeze(-1)
    found = (before <= at if right else before < at).sum(dim=-1)
    return found.int() if out_int32 else found


def _view(x: JaxTensor, *shape: Any) -> Tensor:
    if len(shape) != 1 or not isinstance(shape[0], torch.dtype):
        # Another shape is torchax's own matter, one level further down.
        raise OperatorNotFound("view in another shape")
    return JaxTensor(x.jax().view(t2j_dtype(shape[0])), x._env)


def _narrow(x: Tensor, dim: int, start: int, length: int) -> Tensor:
    # torchax makes a copy of it, so that what is written through it would be lost.
    return getitem(x, (*(slice(None),) * (dim % x.ndim), slice(start, start + length)))


def _getitem(x: JaxTensor | View, index: Any) -> Tensor:
    # torchax indexes views by tensors as if they held arrays themselves.
    has_tensor = any(isinstance(each, Tensor) for each in pytree.tree_leaves(index))
    return getitem(x.torch() if has_tensor and isinstance(x, View) else x, index)
