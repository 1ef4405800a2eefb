"""What the scheduler and the runner say to one another: a plan goes down, a result comes up.

Everything that exists once per request and step is an array with one row per chunk. Row order is
the order of the batch: chunks of one token first (`num_decodes` of them), longer ones after.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from chiplet.request import TokenIds
from chiplet.sampling_params import SamplingParams

Int32s = NDArray[np.int32]
Float32s = NDArray[np.float32]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Chunks:
    """Tokens `[start, start + length)` of each request in the step.

    Attributes:
        slots: `[num_chunks] int32`, the request's row in device tables.
        starts: `[num_chunks] int32`, position of the chunk's first token in its request.
        lengths: `[num_chunks] int32`, tokens in the chunk, at least 1.
        is_sampled: `[num_chunks] bool`, the chunk reaches its request's end: pick a next token.
        is_fed: `[num_chunks] bool`, the first token is the one last sampled for the slot, known on
            the device only; its entry in `token_ids` is 0. Such a chunk has length 1.
        output_indices: `[num_chunks] int32`, index in the answer of the token to be sampled.
    """

    slots: Int32s
    starts: Int32s
    lengths: Int32s
    is_sampled: Bools
    is_fed: Bools
    output_indices: Int32s

    def __len__(self) -> int:
        return len(self.slots)


@dataclass(frozen=True, slots=True)
class PageUpdates:
    """Entries of the page table that changed: `table[slots[i], indices[i]] = page_ids[i]`.

    All `[num_updates] int32`. They hold from this step on.
    """

    slots: Int32s
    indices: Int32s
    page_ids: Int32s

    def __len__(self) -> int:
        return len(self.slots)


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotAdmission:
    """A slot changes hands with this step; whatever it held is forgotten.

    Attributes:
        output_token_ids: tokens picked before a retraction; empty for a new request.
        end_token_ids: barred until the answer has `sampling.min_tokens` tokens.
    """

    slot: int
    sampling: SamplingParams
    seed: int
    prompt_token_ids: TokenIds
    output_token_ids: TokenIds
    end_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """All that a runner needs to know to run one step.

    Attributes:
        step_id: counts up from 0.
        chunks: who takes part, with which tokens.
        num_decodes: how many chunks, at the front, have length 1.
        token_ids: `[num_tokens] int32`, chunk after chunk; 0 where fed by the device.
        admissions: slots that change hands with this step.
        page_updates: changed entries of the page table.
        prompt_targets: `[num_tokens] int32`: the prompt's next token after this one where its
            log-probability is wanted, else -1; empty if no chunk wants any.
    """

    step_id: int
    chunks: Chunks
    num_decodes: int
    token_ids: TokenIds
    admissions: tuple[SlotAdmission, ...]
    page_updates: PageUpdates
    prompt_targets: Int32s

    @property
    def num_tokens(self) -> int:
        """Tokens in the step."""
        return len(self.token_ids)


@dataclass(frozen=True, slots=True)
class LogprobRows:
    """Log-probabilities of some positions.

    Attributes:
        chosen: `[num_rows] float32`, of the token at the position.
        top_token_ids: `[num_rows, k] int32`, likeliest first; k is the largest asked for in the
            step, so a row may hold more than its request wants.
        top: `[num_rows, k] float32`.
    """

    chosen: Float32s
    top_token_ids: Int32s
    top: Float32s


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What a step gave.

    Attributes:
        token_ids: `[num_sampled] int32`, one per chunk with `is_sampled`, in chunk order.
        logprobs: one row per entry of `token_ids`, if any request in the step wants them.
        prompt_logprobs: one row per entry of `prompt_targets` that is not -1, in order.
    """

    step_id: int
    token_ids: TokenIds
    logprobs: LogprobRows | None = None
    prompt_logprobs: LogprobRows | None = None


class PendingStep(Protocol):
    """A step in flight."""

    def is_done(self) -> bool:
        """Whether `wait` would return at once. Never blocks."""
        ...

    def wait(self) -> StepResult:
        """The step's result. Blocks until the device has finished it; may be called once.

        Raises:
            EngineError: the step failed on the device.
        """
        ...


class Runner(Protocol):
    """Runs plans, in the order of their launch."""

    def launch(self, plan: StepPlan) -> PendingStep:
        """Start one step and return without waiting for the device.

        Mutates: the runner's slot tables and the KV pool.
        """
        ...
