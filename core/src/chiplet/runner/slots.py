"""SlotTables: what the runner remembers of each running request between steps."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from chiplet.api import SETTINGS, DeviceState, Platform, Sampling
from chiplet.sampling_params import SamplingParams
from chiplet.step import PageUpdates, SlotAdmission

_MAIN_MEMORY = torch.device("cpu")


class SlotTables:
    """One row per slot: pages and sampling settings on the host, and what steps change.

    Attributes:
        padding_slot: the row after the last slot, which padding writes to.
        page_table: `[num_slots, max_pages] int32`, host; entries that a slot's request has not
            reached are 0 or pages that it will reach.
        settings: `[len(SETTINGS), num_slots] float32`, host; what changes per step is 0.
        top_k: `[num_slots] int32`, host.
        seeds: `[num_slots] uint64`, host.
        min_tokens: `[num_slots] int32`, host.
        needs: `[num_slots] uint8`, host, `Sampling` of each slot's request.
        state: on the device.
    """

    def __init__(
        self,
        *,
        num_slots: int,
        max_pages: int,
        vocab_size: int,
        kv: tuple[Tensor, ...],
        platform: Platform,
    ) -> None:
        self.padding_slot = num_slots
        self.page_table = np.zeros((num_slots, max_pages), dtype=np.int32)
        self.settings = np.zeros((len(SETTINGS), num_slots), dtype=np.float32)
        self.top_k = np.zeros(num_slots, dtype=np.int32)
        self.seeds = np.zeros(num_slots, dtype=np.uint64)
        self.min_tokens = np.zeros(num_slots, dtype=np.int32)
        self.needs = np.zeros(num_slots, dtype=np.uint8)
        self.state = _make_state(num_slots + 1, vocab_size, kv, platform.torch_device)
        self._has_bias = np.zeros(num_slots, dtype=np.bool_)
        self._vocab_size = vocab_size
        self._platform = platform

    def admit(self, admissions: Sequence[SlotAdmission]) -> None:
        """Let slots change hands."""
        for admission in admissions:
            slot, sampling = admission.slot, admission.sampling
            self.page_table[slot] = 0
            self.settings[:, slot] = [_setting(sampling, name) for name in SETTINGS]
            self.top_k[slot] = min(sampling.top_k, self._vocab_size)
            self.seeds[slot] = np.uint64(admission.seed % 2**64)
            self.min_tokens[slot] = sampling.min_tokens
            self.needs[slot] = _needs(sampling)
            if sampling.has_penalties:
                self._write_counts(admission)
            if sampling.logit_bias or self._has_bias[slot]:
                self._write_bias(slot, sampling)
            if sampling.min_tokens:
                is_end = np.zeros(self._vocab_size, dtype=np.bool_)
                is_end[list(admission.end_token_ids)] = True
                self._write(self.state.is_end, slot, is_end)

    def update_pages(self, updates: PageUpdates) -> None:
        """Write changed entries of the page table."""
        if len(updates):
            self.page_table[updates.slots, updates.indices] = updates.page_ids

    def _write_counts(self, admission: SlotAdmission) -> None:
        is_in_prompt = np.zeros(self._vocab_size, dtype=np.bool_)
        is_in_prompt[admission.prompt_token_ids] = True
        counts = np.bincount(admission.output_token_ids, minlength=self._vocab_size)
        self._write(self.state.is_in_prompt, admission.slot, is_in_prompt)
        self._write(self.state.output_counts, admission.slot, counts.astype(np.int32))

    def _write_bias(self, slot: int, sampling: SamplingParams) -> None:
        bias = np.zeros(self._vocab_size, dtype=np.float32)
        bias[list(sampling.logit_bias)] = list(sampling.logit_bias.values())
        self._write(self.state.bias, slot, bias)
        self._has_bias[slot] = bool(sampling.logit_bias)

    def _write(self, table: Tensor, slot: int, row: np.ndarray) -> None:
        # Outside inference mode, in which tensors of some compilers have no views to write to.
        with torch.inference_mode(False), torch.no_grad():
            table[slot] = self._platform.to_device_async(torch.from_numpy(row))


def _make_state(
    num_rows: int, vocab_size: int, kv: tuple[Tensor, ...], device: torch.device
) -> DeviceState:
    """Zeros. In main memory, a table costs nothing until it is needed."""

    def table(*shape: int, dtype: torch.dtype) -> Tensor:
        if device == _MAIN_MEMORY:
            # NOTE: torch writes its zeros; a fresh mapping has them already.
            size_bytes = math.prod(shape) * dtype.itemsize
            return torch.frombuffer(mmap.mmap(-1, size_bytes), dtype=dtype).view(shape)
        return torch.zeros(shape, dtype=dtype, device=device)

    return DeviceState(
        kv=kv,
        last_tokens=table(num_rows, dtype=torch.int32),
        is_in_prompt=table(num_rows, vocab_size, dtype=torch.bool),
        output_counts=table(num_rows, vocab_size, dtype=torch.int32),
        bias=table(num_rows, vocab_size, dtype=torch.float32),
        is_end=table(num_rows, vocab_size, dtype=torch.bool),
    )


def _setting(sampling: SamplingParams, name: str) -> float:
    match name:
        case "temperature":
            return 0.0 if sampling.is_greedy else sampling.temperature
        case "repetition" | "presence" | "frequency":
            return getattr(sampling, f"{name}_penalty")
        case "uniform" | "barred":
            return 0.0
        case _:
            return getattr(sampling, name)


def _needs(sampling: SamplingParams) -> Sampling:
    needs = Sampling(0)
    if not sampling.is_greedy:
        needs |= Sampling.DRAW
        if sampling.top_k or sampling.top_p < 1 or sampling.min_p:
            needs |= Sampling.FILTERS
    if sampling.has_penalties:
        needs |= Sampling.PENALTIES
    if sampling.logit_bias:
        needs |= Sampling.BIAS
    if sampling.logprobs is not None:
        needs |= Sampling.LOGPROBS
    return needs
