"""Torch tensors that hold jax arrays, and the way from one to the other.

A device tensor of the jax compiler is torchax's: a torch tensor whose operations are jax's. Here is
the one place that knows how it holds its array.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import torch
from torchax.tensor import Tensor as JaxTensor
from torchax.tensor import View

from chiplet_tpu.compilation.lowerings import environment


def wrap(array: Any) -> torch.Tensor:
    """A tensor that holds the array, one that is no inference tensor; see `lowerings`."""
    with torch.inference_mode(False):
        return JaxTensor(array, environment())


def array_of(tensor: torch.Tensor) -> jax.Array:
    """The array that a tensor, or a view of one, stands for."""
    return _held(tensor, JaxTensor | View).jax()


def is_held(tensor: torch.Tensor) -> bool:
    """Whether the tensor holds an array; others are plain tensors of the host."""
    return isinstance(tensor, JaxTensor)


def assign(tensor: torch.Tensor, array: Any) -> None:
    """Let the tensor hold another array. Mutates: tensor."""
    _held(tensor, JaxTensor)._elem = array


def _held(tensor: torch.Tensor, kinds: Any) -> Any:
    """The tensor, as one of torchax's kinds, which no type stub describes."""
    assert isinstance(tensor, kinds), type(tensor)
    return tensor


def on_arrays(function: Callable[..., jax.Array], *arguments: Any) -> torch.Tensor:
    """What a jax function gives, with tensors as arguments and result."""
    arrays = [array_of(each) if isinstance(each, torch.Tensor) else each for each in arguments]
    return wrap(function(*arrays))


@contextmanager
def holding(tensors: Sequence[torch.Tensor], arrays: Sequence[Any]) -> Generator[None]:
    """Within, tensors hold other arrays: a tracer's. Whoever uses it must hold a lock."""
    before = [array_of(each) for each in tensors]
    try:
        for tensor, array in zip(tensors, arrays, strict=True):
            assign(tensor, array)
        yield
    finally:
        for tensor, array in zip(tensors, before, strict=True):
            assign(tensor, array)
