"""What a step may still take on: prompt tokens, and pages that must stay in reserve."""

from __future__ import annotations

import numpy as np

from chiplet.scheduler.slot_table import SlotTable

HEADROOM_TOKENS = 64
"""Tokens of each answer for which admissions leave room, so that what is admitted is seldom
retracted at once. More would leave pages idle where answers end early."""


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


def growth_pages(table: SlotTable, page_size: int, headroom_tokens: int) -> int:
    """Pages that running requests will want for their next `headroom_tokens` tokens each."""
    slots = np.flatnonzero(table.is_active)
    known = np.maximum(table.positions[slots], table.targets[slots])
    ends = np.minimum(known + headroom_tokens, table.finals[slots])
    wanted = -(-ends // page_size) - table.num_pages[slots]
    return int(np.maximum(wanted, 0).sum())
