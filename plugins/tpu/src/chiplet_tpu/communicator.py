"""Collectives of ranks that live in one program: those of jax, on the mesh's axis."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import torch
from jax import lax

from chiplet.api import (
    BuildContext,
    CommunicationRequest,
    Communicator,
    Feature,
    No,
    Tier,
    Verdict,
    Yes,
)
from chiplet_tpu.compilation.arrays import on_arrays
from chiplet_tpu.compilation.mesh import RANKS


class MeshCommunicator:
    """Collectives inside the step that is being traced; there is nobody to meet."""

    def connect(self) -> None:
        """Nothing to do: one process holds all ranks."""

    def close(self) -> None:
        """Nothing to do."""

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """The sum over ranks."""
        return on_arrays(lambda array: lax.psum(array, RANKS), x)

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        """Every rank's tensor. Shapes: returns `[size, *x.shape]`."""
        return on_arrays(lambda array: lax.all_gather(array, RANKS), x)

    def reduce_scatter(self, x: torch.Tensor) -> torch.Tensor:
        """Rank r gets the sum over ranks of `x[r]`."""
        return on_arrays(lambda array: lax.psum_scatter(array, RANKS), x)

    def all_to_all(self, x: torch.Tensor) -> torch.Tensor:
        """Rank r gets `x[r]` of every rank: the exchange that experts of several ranks need."""
        return on_arrays(lambda array: lax.all_to_all(array, RANKS, 0, 0), x)

    def broadcast(self, x: torch.Tensor, source: int) -> torch.Tensor:
        """The tensor of rank `source`."""

        def pick(array: jax.Array) -> jax.Array:
            is_source = lax.axis_index(RANKS) == source
            return lax.psum(jnp.where(is_source, array, jnp.zeros_like(array)), RANKS)

        return on_arrays(pick, x)

    def send(self, x: torch.Tensor, target: int) -> None:
        """Refused: no rank acts alone."""
        raise RuntimeError("all ranks run one program, where none can send alone")

    def recv(self, like: torch.Tensor, source: int) -> torch.Tensor:
        """Refused: no rank acts alone."""
        raise RuntimeError("all ranks run one program, where none can receive alone")

    def barrier(self) -> None:
        """Nothing to do: one process holds all ranks."""


class MeshCommunicationProvider:
    """Serves ranks of one program."""

    name = "mesh"
    accepts = frozenset({Feature.ONE_PROGRAM})

    def assess(self, request: CommunicationRequest) -> Verdict:
        """Yes where all ranks live in one program."""
        if not request.is_one_program:
            return No.because("processes", "serves ranks of one program, not a process each")
        return Yes(Tier.VENDOR, "collectives of the compiled program")

    def build(self, request: CommunicationRequest, context: BuildContext) -> Communicator:
        """The collectives."""
        return MeshCommunicator()
