"""The whole step as one function, and the executables that run it for a shape bucket.

Core writes the step once, as a function of tensors: `Step`. A platform makes an `Executable` of it
for each `ShapeBucket`: it records the function's work as a device graph, compiles it whole, or
hands the step itself back, which then runs operation by operation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntFlag
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

ArrayT = TypeVar("ArrayT")

_ALIGNMENT = 4
"""Each input starts at a multiple of this many elements, 16 bytes."""


class Sampling(IntFlag):
    """What a step must do to pick tokens, beyond taking the likeliest."""

    DRAW = 1
    """Some request draws at random."""
    FILTERS = 2
    """Some request that draws uses top_k, top_p or min_p."""
    PENALTIES = 4
    """Some request has a repetition, presence or frequency penalty."""
    BIAS = 8
    """Some request has a logit bias, or end tokens that would come too early."""
    LOGPROBS = 16
    """Some request wants log-probabilities, of its answer or of its prompt."""


ALL_SAMPLING = (
    Sampling.DRAW | Sampling.FILTERS | Sampling.PENALTIES | Sampling.BIAS | Sampling.LOGPROBS
)
"""Serves every step, at a price: see `Sampling`."""


GREEDY = Sampling(0)
"""The likeliest token is picked, and nothing else is wanted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeBucket:
    """The shape of a step: all that its program depends on.

    A step fits a bucket that is at least as large in everything; what is left is padding, see
    `ForwardBatch`.

    Attributes:
        num_tokens: rows of hidden states.
        num_requests: each gives one row of logits, whether a token is wanted of it or not.
        num_decodes: requests at the front known to have exactly one token. Equal to
            `num_requests` in a decode bucket, where there is nothing else; 0 serves any mixture.
        max_pages: columns of the page table.
        num_prompt_rows: further rows of logits, for log-probabilities of prompt tokens.
        sampling: what it can do to pick tokens.
    """

    num_tokens: int
    num_requests: int
    num_decodes: int
    max_pages: int
    num_prompt_rows: int = 0
    sampling: Sampling = GREEDY

    def __post_init__(self) -> None:
        assert 0 < self.num_requests <= self.num_tokens, self
        assert 0 <= self.num_decodes <= self.num_requests, self
        assert self.max_pages > 0, self
        assert self.num_prompt_rows >= 0, self
        if self.is_decode:
            assert self.num_tokens == self.num_requests, self

    @property
    def is_decode(self) -> bool:
        """Every request has exactly one token."""
        return self.num_decodes == self.num_requests

    @property
    def num_logit_rows(self) -> int:
        """Rows of logits: one per request, then those of the prompt."""
        return self.num_requests + self.num_prompt_rows

    def serves(self, step: ShapeBucket) -> bool:
        """Whether a step of that exact shape can run in this bucket."""
        return (
            step.num_tokens <= self.num_tokens
            and step.num_requests <= self.num_requests
            and step.max_pages <= self.max_pages
            and step.num_prompt_rows <= self.num_prompt_rows
            and (step.is_decode if self.is_decode else step.num_decodes >= self.num_decodes)
            and step.sampling | self.sampling == self.sampling
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLimits:
    """The largest step that the scheduler may ask for.

    Attributes:
        max_tokens: of all requests together.
        max_requests: all of them may decode in one step.
        max_pages: of one request.
        max_prompt_rows: prompt tokens whose log-probabilities one step may compute.
        page_size: tokens per page.
    """

    max_tokens: int
    max_requests: int
    max_pages: int
    max_prompt_rows: int
    page_size: int

    @property
    def largest_step(self) -> ShapeBucket:
        """A bucket that serves every step."""
        return ShapeBucket(
            num_tokens=self.max_tokens,
            num_requests=self.max_requests,
            num_decodes=0,
            max_pages=self.max_pages,
            num_prompt_rows=self.max_prompt_rows,
            sampling=ALL_SAMPLING,
        )


def doubling(smallest: int, largest: int) -> tuple[int, ...]:
    """Sizes for buckets: `smallest`, twice that and so on below `largest`, and `largest`."""
    sizes: list[int] = []
    while smallest < largest:
        sizes.append(smallest)
        smallest *= 2
    return (*sizes, largest)


class StepInputs(NamedTuple, Generic[ArrayT]):
    """All that a step needs from the host. T, R, P: the bucket's tokens, requests, prompt rows.

    Attributes:
        token_ids: `[T] int32`; a negative entry `-1 - slot` stands for the token last sampled for
            that slot, which only the device knows yet.
        positions, kv_rows: `[T] int32`, query_starts `[R + 1] int32`, kv_lengths `[R] int32`,
            page_table `[R, max_pages] int32`, logit_rows `[R + P] int32`: as in `ForwardBatch`.
        slots: `[R] int32`, slot that a request's token is noted for; that of padding where no
            token is wanted.
        targets: `[P] int32`, prompt tokens whose log-probability is wanted.
        top_k: `[R] int32`, 0 means all.
        settings: `[len(Setting), R] float32`, see `Setting`.
    """

    token_ids: ArrayT
    positions: ArrayT
    kv_rows: ArrayT
    query_starts: ArrayT
    kv_lengths: ArrayT
    page_table: ArrayT
    logit_rows: ArrayT
    slots: ArrayT
    targets: ArrayT
    top_k: ArrayT
    settings: ArrayT


_PAGE_TABLE = StepInputs._fields.index("page_table")

SETTINGS = (
    "temperature",
    "top_p",
    "min_p",
    "repetition",
    "presence",
    "frequency",
    "uniform",
    "barred",
)
"""Rows of `StepInputs.settings`; `barred` is 1 where end tokens would come too early."""


@dataclass(frozen=True, slots=True)
class InputLayout:
    """Where each input of a bucket lies in its buffer of 32-bit elements.

    Attributes:
        places: elements of each.
        shapes: of each.
        size: elements of the buffer.
    """

    places: StepInputs[slice]
    shapes: StepInputs[tuple[int, ...]]
    size: int

    @classmethod
    def of(cls, bucket: ShapeBucket) -> InputLayout:
        """The layout of a bucket."""
        tokens, requests = (bucket.num_tokens,), (bucket.num_requests,)
        shapes: StepInputs[tuple[int, ...]] = StepInputs(
            token_ids=tokens,
            positions=tokens,
            kv_rows=tokens,
            query_starts=(bucket.num_requests + 1,),
            kv_lengths=requests,
            page_table=(bucket.num_requests, bucket.max_pages),
            logit_rows=(bucket.num_logit_rows,),
            slots=requests,
            targets=(bucket.num_prompt_rows,),
            top_k=requests,
            settings=(len(SETTINGS), bucket.num_requests),
        )
        places: list[slice] = []
        size = 0
        for shape in shapes:
            places.append(slice(size, size + math.prod(shape)))
            size += -(-math.prod(shape) // _ALIGNMENT) * _ALIGNMENT
        return cls(StepInputs(*places), shapes, size)

    def split(self, buffer: Any, float32: Any) -> StepInputs[Any]:
        """The inputs as views of a buffer.

        Args:
            buffer: `[size] int32`, an array of any library with slices, `reshape` and `view`.
            float32: that library's name of the type.
        """
        views = [buffer[place] for place in self.places]
        views[_PAGE_TABLE] = views[_PAGE_TABLE].reshape(self.shapes.page_table)
        views[-1] = views[-1].view(float32).reshape(self.shapes.settings)
        return StepInputs(*views)


@dataclass(frozen=True, slots=True)
class HostInputs:
    """The inputs of one step on the host.

    Attributes:
        buffer: `[layout.size] int32`, never written again.
        arrays: views of it.
    """

    buffer: NDArray[np.int32]
    arrays: StepInputs[NDArray[Any]]


class DeviceState(NamedTuple):
    """Everything that a step changes. A step writes into these tensors and into nothing else.

    Attributes:
        kv: the pages of each layer, as its layout says; the last page is that of padding.
        last_tokens: `[num_slots + 1] int32`, token last sampled for each slot; the last row of
            this and of the other tables is that of padding.
        is_in_prompt: `[num_slots + 1, vocab] bool`, for penalties.
        output_counts: `[num_slots + 1, vocab] int32`, for penalties.
        bias: `[num_slots + 1, vocab] float32`, added to logits.
        is_end: `[num_slots + 1, vocab] bool`, tokens that may be barred.

    Between steps core writes single rows of the last four, in place, when a slot changes hands.
    """

    kv: tuple[Tensor, ...]
    last_tokens: Tensor
    is_in_prompt: Tensor
    output_counts: Tensor
    bias: Tensor
    is_end: Tensor


class Logprobs(NamedTuple):
    """Log-probabilities of n rows: chosen `[n] float32`, top_ids `[n, k] int32` likeliest first,
    top `[n, k] float32`.
    """

    chosen: Tensor
    top_ids: Tensor
    top: Tensor


class StepOutputs(NamedTuple):
    """What a step gives, on the device; rows of padding may hold anything.

    Attributes:
        token_ids: `[num_requests] int32`.
        logprobs: `num_logit_rows` rows, in a bucket with `Sampling.LOGPROBS`.
    """

    token_ids: Tensor
    logprobs: Logprobs | None


class Executable(Protocol):
    """A step prepared for one bucket. It owns the fixed-address inputs and outputs, if any."""

    @property
    def bucket(self) -> ShapeBucket:
        """What it serves."""
        ...

    def launch(self, host: HostInputs) -> StepOutputs:
        """Bring the inputs to the device and start the step; never waits for the device.

        The outputs hold until the next launch of the same executable, in the order of the device's
        work. Up to two steps are in flight, so memory from which an earlier launch still copies
        must not be overwritten; `host` itself is never written again, and whoever reads it later
        keeps it alive.

        Mutates: the tensors of the step's state.
        """
        ...


class Step(Executable, Protocol):
    """The whole step for one bucket, as core wrote it.

    `step(inputs, state)` is a function of tensors: embedding, layers, penalties, the draw, and
    the note of each slot's last token. In it no shape depends on a value, nothing is read back
    from the device, and nothing but the state is written. It may be called on stand-ins, like a
    tracer's, as often as needed.

    The step is an `Executable` itself: `launch` runs it operation by operation, in shapes that
    need not be known before.
    """

    @property
    def layout(self) -> InputLayout:
        """How `HostInputs.buffer` is laid out; `layout.split(buffer, torch.float32)` gives the
        inputs as views of one device buffer.
        """
        ...

    @property
    def state(self) -> DeviceState:
        """The state's tensors, the same ones for all buckets and at the same addresses for ever."""
        ...

    def __call__(self, inputs: StepInputs[Tensor], state: DeviceState) -> StepOutputs:
        """Run the step, without waiting for the device.

        Shapes: see `StepInputs`, `DeviceState` and `StepOutputs`, for the step's bucket.
        Mutates: the tensors of `state`.
        """
        ...

    def constants(self) -> Sequence[Tensor]:
        """Every tensor, once, that the function reads beside inputs and state: weights in packed
        form, tables, in whichever shapes implementations gave them. A compiler must take them as
        arguments; the function reads these very objects, so a tracer substitutes them by identity.
        """
        ...

    def padding(self) -> HostInputs:
        """Inputs of a step that is padding altogether, for warming up and recording: it leaves no
        trace but in the padding page and the padding row of the tables.
        """
        ...
