"""SlotTables: what the runner remembers of each running request between steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from chiplet.api import Platform
from chiplet.sampling_params import SamplingParams
from chiplet.step import PageUpdates, SlotAdmission


class SlotTables:
    """One row per slot: pages, sampling settings, and what sampling keeps on the device.

    Attributes:
        page_table: `[num_slots, max_pages] int32`, host.
        temperature, top_p, min_p, repetition, presence, frequency: `[num_slots] float32`, host.
        top_k: `[num_slots] int32`, host.
        seeds: `[num_slots] uint64`, host.
        sampling: settings of each slot's request.
        end_token_ids: of each slot's request.
        last_tokens: `[num_slots] int32`, device, token last sampled for each slot.
    """

    def __init__(
        self, *, num_slots: int, max_pages: int, vocab_size: int, platform: Platform
    ) -> None:
        self.page_table = np.zeros((num_slots, max_pages), dtype=np.int32)
        self.temperature = np.zeros(num_slots, dtype=np.float32)
        self.top_k = np.zeros(num_slots, dtype=np.int32)
        self.top_p = np.ones(num_slots, dtype=np.float32)
        self.min_p = np.zeros(num_slots, dtype=np.float32)
        self.repetition = np.ones(num_slots, dtype=np.float32)
        self.presence = np.zeros(num_slots, dtype=np.float32)
        self.frequency = np.zeros(num_slots, dtype=np.float32)
        self.seeds = np.zeros(num_slots, dtype=np.uint64)
        self.sampling = [SamplingParams()] * num_slots
        self.end_token_ids: list[tuple[int, ...]] = [()] * num_slots
        self.last_tokens = torch.zeros(num_slots, dtype=torch.int32, device=platform.torch_device)
        self._vocab_size = vocab_size
        self._platform = platform
        # Made when the first request with penalties comes: most servers never need them.
        self._is_in_prompt = torch.empty(0)
        self._output_counts = torch.empty(0)

    def admit(self, admissions: Sequence[SlotAdmission]) -> None:
        """Let slots change hands."""
        for admission in admissions:
            slot, sampling = admission.slot, admission.sampling
            self.temperature[slot] = 0.0 if sampling.is_greedy else sampling.temperature
            self.top_k[slot] = min(sampling.top_k, self._vocab_size)
            self.top_p[slot] = sampling.top_p
            self.min_p[slot] = sampling.min_p
            self.repetition[slot] = sampling.repetition_penalty
            self.presence[slot] = sampling.presence_penalty
            self.frequency[slot] = sampling.frequency_penalty
            self.seeds[slot] = np.uint64(admission.seed % 2**64)
            self.sampling[slot] = sampling
            self.end_token_ids[slot] = admission.end_token_ids
            if sampling.has_penalties:
                self._count(admission)

    def update_pages(self, updates: PageUpdates) -> None:
        """Write changed entries of the page table."""
        self.page_table[updates.slots, updates.indices] = updates.page_ids

    def occurrences(self, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens seen by slots, for penalties.

        Shapes: slots `[n] int64`; returns is_in_prompt `[n, vocab] bool` and output_counts
        `[n, vocab] int32`.
        """
        return self._is_in_prompt[slots], self._output_counts[slots]

    def remember(self, slots: torch.Tensor, token_ids: torch.Tensor) -> None:
        """Note the tokens just sampled. Shapes: slots `[n] int64`; token_ids `[n] int32`."""
        self.last_tokens[slots] = token_ids

    def count(self, slots: torch.Tensor, token_ids: torch.Tensor) -> None:
        """Note one occurrence each, for slots with penalties. Shapes: both `[n] int64`."""
        ones = torch.ones_like(slots, dtype=torch.int32)
        self._output_counts.index_put_((slots, token_ids), ones, accumulate=True)

    def _count(self, admission: SlotAdmission) -> None:
        if self._output_counts.numel() == 0:
            shape = (len(self.seeds), self._vocab_size)
            device = self._platform.torch_device
            self._is_in_prompt = torch.zeros(shape, dtype=torch.bool, device=device)
            self._output_counts = torch.zeros(shape, dtype=torch.int32, device=device)
        is_in_prompt = np.zeros(self._vocab_size, dtype=np.bool_)
        is_in_prompt[admission.prompt_token_ids] = True
        counts = np.bincount(admission.output_token_ids, minlength=self._vocab_size)
        send = self._platform.to_device_async
        self._is_in_prompt[admission.slot] = send(torch.from_numpy(is_in_prompt))
        self._output_counts[admission.slot] = send(torch.from_numpy(counts.astype(np.int32)))
