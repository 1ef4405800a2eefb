"""One step as a program of jax: traced once, compiled once, its state donated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import torch
from jax.sharding import PartitionSpec

from chiplet.api import (
    DeviceState,
    HostInputs,
    Logprobs,
    Sampling,
    ShapeBucket,
    Step,
    StepInputs,
    StepOutputs,
)
from chiplet_tpu.compilation import arrays
from chiplet_tpu.compilation.mesh import SPLIT, WHOLE, RankMesh


class StateSplit:
    """The state's tensors: those that a bucket's step writes, and those that it reads only.

    What is written is donated, so that a step writes in place; what is only read must not be.

    Attributes:
        num_tables: written arrays that are no pages; they come last.
    """

    def __init__(self, bucket: ShapeBucket) -> None:
        self._has_penalties = Sampling.PENALTIES in bucket.sampling
        self.num_tables = 2 if self._has_penalties else 1

    def written(self, state: DeviceState) -> list[Any]:
        """KV pages, last tokens, and the counts of a step with penalties."""
        counts = [state.output_counts] if self._has_penalties else []
        return [*state.kv, state.last_tokens, *counts]

    def read(self, state: DeviceState) -> list[Any]:
        """The rest."""
        counts = [] if self._has_penalties else [state.output_counts]
        return [state.is_in_prompt, state.bias, state.is_end, *counts]

    def join(self, written: Sequence[Any], read: Sequence[Any]) -> DeviceState:
        """The state of both."""
        num_kv = len(written) - self.num_tables
        last_tokens, *counts = written[num_kv:]
        is_in_prompt, bias, is_end, *more = read
        (output_counts,) = (*counts, *more)
        return DeviceState(
            kv=tuple(written[:num_kv]),
            last_tokens=last_tokens,
            is_in_prompt=is_in_prompt,
            output_counts=output_counts,
            bias=bias,
            is_end=is_end,
        )


class StepProgram:
    """A step as a function of arrays, ready to be traced.

    Attributes:
        split: which of the state is donated.
    """

    def __init__(self, step: Step, constants: Sequence[torch.Tensor]) -> None:
        self.split = StateSplit(step.bucket)
        self._step = step
        self._constants = constants

    def __call__(
        self,
        constants: Sequence[jax.Array],
        written: Sequence[jax.Array],
        read: Sequence[jax.Array],
        buffer: jax.Array,
    ) -> tuple[list[jax.Array], list[jax.Array]]:
        """Outputs, and the written arrays anew. To be traced while nobody else traces."""
        step, written_tensors = self._step, [arrays.wrap(each) for each in written]
        read_tensors = [arrays.wrap(each) for each in read]
        state = self.split.join(written_tensors, read_tensors)
        # Split as an array: torchax cannot view a tensor as another type.
        views = step.layout.split(buffer, jnp.float32)
        inputs = StepInputs(*(arrays.wrap(each) for each in views))
        with arrays.holding(self._constants, constants), jax.default_matmul_precision("highest"):
            outputs = step(inputs, state)
        assert all(
            arrays.array_of(tensor) is array
            for tensor, array in zip(read_tensors, read, strict=True)
        ), "a step wrote a table that its bucket only reads"
        results = [outputs.token_ids, *(outputs.logprobs or ())]
        return (
            [arrays.array_of(each) for each in results],
            [arrays.array_of(each) for each in written_tensors],
        )


class JaxExecutable:
    """A compiled step.

    Attributes:
        compiled: jax's own executable, for those who look into it.
    """

    def __init__(
        self,
        step: Step,
        split: StateSplit,
        *,
        compiled: Any,
        constants: Sequence[jax.Array],
        mesh: RankMesh,
    ) -> None:
        self.bucket = step.bucket
        self.compiled = compiled
        self._written = split.written(step.state)
        self._read = split.read(step.state)
        self._constants = constants
        self._mesh = mesh

    def launch(self, host: HostInputs) -> StepOutputs:
        """One copy to the device and one call; the state's tensors hold the results."""
        results, written = self.compiled(
            self._constants,
            [arrays.array_of(each) for each in self._written],
            [arrays.array_of(each) for each in self._read],
            jax.device_put(host.buffer, self._mesh.replicated),
        )
        for tensor, array in zip(self._written, written, strict=True):
            arrays.assign(tensor, array)
        token_ids, *logprobs = (arrays.wrap(each) for each in results)
        return StepOutputs(token_ids, Logprobs(*logprobs) if logprobs else None)


def compile_step(step: Step, mesh: RankMesh) -> JaxExecutable:
    """The program of a step. Whoever calls it holds the lock on constants."""
    tensors = [each for each in step.constants() if arrays.is_held(each)]
    spread = [mesh.spread(each) for each in tensors]
    mesh.spread_state(step.state)
    program = StepProgram(step, tensors)
    constants = [array for array, _ in spread]
    lowered = lower(
        program,
        mesh,
        specs=[spec for _, spec in spread],
        arguments=(
            [_shape_of(each) for each in constants],
            [_shape_of(arrays.array_of(each)) for each in program.split.written(step.state)],
            [_shape_of(arrays.array_of(each)) for each in program.split.read(step.state)],
            jax.ShapeDtypeStruct((step.layout.size,), jnp.int32, sharding=mesh.replicated),
        ),
    )
    return JaxExecutable(
        step, program.split, compiled=lowered.compile(), constants=constants, mesh=mesh
    )


def lower(
    program: StepProgram,
    mesh: RankMesh,
    *,
    specs: Sequence[PartitionSpec],
    arguments: tuple[Sequence[Any], Sequence[Any], Sequence[Any], Any],
) -> Any:
    """The program traced for a mesh; arguments are shapes.

    Args:
        program: what is traced.
        mesh: devices that it spans.
        specs: how each constant lies on them.
        arguments: constants, written and read state, buffer, in the shapes of all ranks together.
    """
    if mesh.size == 1:
        return jax.jit(program, donate_argnums=(1,)).lower(*arguments)
    num_tables = program.split.num_tables
    written = [SPLIT] * (len(arguments[1]) - num_tables) + [WHOLE] * num_tables
    shared = jax.shard_map(
        program,
        mesh=mesh.mesh,
        in_specs=(list(specs), written, [WHOLE] * len(arguments[2]), WHOLE),
        out_specs=(WHOLE, written),
        check_vma=False,
    )
    return jax.jit(shared, donate_argnums=(1,)).lower(*arguments)


def _shape_of(array: jax.Array) -> jax.ShapeDtypeStruct:
    """What tracing needs of an array, which a step that runs meanwhile may take over."""
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)
