"""What a step may still take on: prompt tokens, and pages that must stay in reserve."""

from __future__ import annotations

import numpy as np

from chiplet.config import ScheduleOptions
from chiplet.scheduler.slot_table import SlotTable

HEADROOM_TOKENS = 64
"""Tokens of each answer for which admissions leave room, so that what is admitted is seldom
retracted at once. More would leave pages idle where answers end early."""


FEW_CHUNKS = 16
"""Waiting prompt tokens are few while they are no more than so many mixed chunks: computed in small
steps they are done nearly as soon. More are computed in large steps, which take less time each."""


class PromptBudget:
    """Prompt tokens that one step may compute.

    Attributes:
        num_left: tokens not granted yet.
    """

    __slots__ = ("num_left",)

    def __init__(self, num_tokens: int) -> None:
        self.num_left = num_tokens

    def take(self, num_wanted: int) -> int:
        """As many of the wanted tokens as are left."""
        granted = min(num_wanted, self.num_left)
        self.num_left -= granted
        return granted


def prompt_budget(
    options: ScheduleOptions, num_decodes: int, num_waiting_tokens: int
) -> PromptBudget:
    """What a step may compute of prompts.

    A step that waits for its weights anyway takes some prompt tokens along in nearly the same
    time. Devices multiply in tiles, so that a step costs what the next multiple of a tile does.

    Args:
        options: `mixed_prefill_size` is None, or about as many rows as come along.
        num_decodes: requests that decode in the step.
        num_waiting_tokens: of prompts not computed yet.
    """
    most, size = options.chunked_prefill_size, options.mixed_prefill_size
    if size is None or not num_decodes or num_waiting_tokens > FEW_CHUNKS * size:
        return PromptBudget(most)
    num_tokens = -(-(num_decodes + size) // size) * size
    return PromptBudget(min(most, num_tokens - num_decodes))


def growth_pages(table: SlotTable, page_size: int, headroom_tokens: int) -> int:
    """Pages that running requests will want for their next `headroom_tokens` tokens each."""
    slots = np.flatnonzero(table.is_active)
    known = np.maximum(table.positions[slots], table.targets[slots])
    ends = np.minimum(known + headroom_tokens, table.finals[slots])
    wanted = -(-ends // page_size) - table.num_pages[slots]
    return int(np.maximum(wanted, 0).sum())
