"""Rows of the table: what each measures, its unit, and what the machine would allow."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from peers.process import PeerProcess

FIRST_TOKEN_ID, LAST_TOKEN_ID = 1000, 9000
"""Range of random ids: every usual vocabulary has it, and no special token is in it."""

INPUT_TOKENS = OUTPUT_TOKENS = 128
LONG_PROMPT = 1024
PREFIX_REQUESTS, PREFIX_SUFFIX, PREFIX_OUTPUT = 32, 32, 64
MEMORY_POLL_S = 0.02
LOAD_LIMIT_S, WORK_LIMIT_S = 300.0, 180.0


@dataclass(frozen=True, slots=True)
class Costs:
    """Of the machine, per second, and of the model, per token; see adapters/peer_limits.py."""

    read_bytes: float
    bf16_flops: float
    int8_ops: float
    layer_weights: int
    head_weights: int
    file_weight_bytes: int

    def weight_bytes(self, coding: str) -> float:
        """Bytes that a token reads of all weights."""
        weights = self.layer_weights + self.head_weights
        return {"file": self.file_weight_bytes, "int8": weights, "bfloat16": 2 * weights}[coding]

    def products_s(self, prompt_tokens: int, output_tokens: int, *, coding: str) -> float:
        """Seconds for the products alone; the head is needed for output tokens only."""
        operations = 2 * (
            (prompt_tokens + output_tokens) * self.layer_weights + output_tokens * self.head_weights
        )
        return operations / (self.bf16_flops if coding == "bfloat16" else self.int8_ops)


class Prompts:
    """Random prompts, new ones at each call."""

    def __init__(self, seed: int) -> None:
        self._source = random.Random(seed)

    def take(self, num_prompts: int, num_tokens: int) -> list[list[int]]:
        """So many prompts of so many token ids."""
        ids = range(FIRST_TOKEN_ID, LAST_TOKEN_ID)
        return [self._source.choices(ids, k=num_tokens) for _ in range(num_prompts)]


Measure = Callable[[PeerProcess, Sequence[Sequence[list[int]]]], float]
Limit = Callable[[Costs, str], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One kind of work.

    Attributes:
        groups: how many prompts of how many tokens one measurement needs, in groups.
        measure: the figure of one peer for such prompts.
        limit: the best figure that the machine would allow, for a peer whose weights
            have a coding of peers.toml; int8 rates count for 4 bits too. None if there is none.
        is_timed: others that use the cores disturb it.
        is_fresh: each measurement needs a process of its own, not yet started.
        shared_tokens: so many tokens of each group's first prompt begin all its prompts.
    """

    name: str
    title: str
    unit: str
    groups: tuple[tuple[int, int], ...]
    measure: Measure
    limit: Limit | None = None
    is_timed: bool = True
    is_fresh: bool = False
    lower_is_better: bool = False
    shared_tokens: int = 0

    def prompts(self, source: Prompts) -> list[list[list[int]]]:
        """Fresh prompts for one round; every peer gets the same."""
        groups = [source.take(*group) for group in self.groups]
        for group in groups:
            prefix = group[0][: self.shared_tokens]
            group[:] = [prefix + prompt[len(prefix) :] for prompt in group]
        return groups


def _start(peer: PeerProcess, groups: Sequence[Sequence[list[int]]]) -> float:
    peer.start(LOAD_LIMIT_S)
    peer.generate(groups[0], 1, limit_s=WORK_LIMIT_S)
    return time.perf_counter() - peer.started_s


def _first_token(peer: PeerProcess, groups: Sequence[Sequence[list[int]]]) -> float:
    return peer.generate(groups[0], 1, limit_s=WORK_LIMIT_S) * 1e3


def _decode(peer: PeerProcess, groups: Sequence[Sequence[list[int]]]) -> float:
    first_s = peer.generate(groups[0], 1, limit_s=WORK_LIMIT_S)
    total_s = peer.generate(groups[1], OUTPUT_TOKENS, limit_s=WORK_LIMIT_S)
    return (OUTPUT_TOKENS - 1) / (total_s - first_s)


def _prefill(peer: PeerProcess, groups: Sequence[Sequence[list[int]]]) -> float:
    return LONG_PROMPT / peer.generate(groups[0], 1, limit_s=WORK_LIMIT_S)


def _throughput(num_tokens: int) -> Measure:
    def measure(peer: PeerProcess, groups: Sequence[Sequence[list[int]]]) -> float:
        seconds = peer.generate(groups[0], num_tokens, limit_s=WORK_LIMIT_S)
        return len(groups[0]) * num_tokens / seconds

    return measure


def _memory(peer: PeerProcess, groups: Sequence[Sequence[list[int]]]) -> float:
    with peer.watching_memory(MEMORY_POLL_S) as peak:
        peer.start(LOAD_LIMIT_S)
        peer.generate(groups[0], OUTPUT_TOKENS, limit_s=WORK_LIMIT_S)
    return peak.bytes / 2**20


def _rate(
    name: str,
    title: str,
    *,
    groups: tuple[tuple[int, int], ...],
    measure: Measure,
    limit: Limit,
    shared_tokens: int = 0,
) -> Row:
    """Tokens per second, more is better."""
    return Row(
        name=name,
        title=title,
        unit="tok/s",
        groups=groups,
        measure=measure,
        limit=limit,
        shared_tokens=shared_tokens,
    )


def _cost(
    name: str,
    title: str,
    *,
    unit: str,
    num_tokens: int,
    measure: Measure,
    is_timed: bool = True,
    is_fresh: bool = False,
) -> Row:
    """What one prompt takes, less is better."""
    return Row(
        name=name,
        title=title,
        unit=unit,
        groups=((1, num_tokens),),
        measure=measure,
        is_timed=is_timed,
        is_fresh=is_fresh,
        lower_is_better=True,
    )


def _streams(num_streams: int) -> Row:
    def limit(costs: Costs, coding: str) -> float:
        prompt, output = num_streams * INPUT_TOKENS, num_streams * OUTPUT_TOKENS
        return output / costs.products_s(prompt, output, coding=coding)

    return _rate(
        f"streams-{num_streams}",
        f"{num_streams} streams, {INPUT_TOKENS} in, {OUTPUT_TOKENS} out",
        groups=((num_streams, INPUT_TOKENS),),
        measure=_throughput(OUTPUT_TOKENS),
        limit=limit,
    )


def _decode_limit(costs: Costs, coding: str) -> float:
    return costs.read_bytes / costs.weight_bytes(coding)


def _prefill_limit(costs: Costs, coding: str) -> float:
    return LONG_PROMPT / costs.products_s(LONG_PROMPT, 0, coding=coding)


def _prefix_limit(costs: Costs, coding: str) -> float:
    prompt = LONG_PROMPT + PREFIX_REQUESTS * PREFIX_SUFFIX
    output = PREFIX_REQUESTS * PREFIX_OUTPUT
    return output / costs.products_s(prompt, output, coding=coding)


ROWS = (
    _cost("start", "start to first token", unit="s", num_tokens=16, measure=_start, is_fresh=True),
    _cost(
        "first-token",
        f"time to first token, one stream, {INPUT_TOKENS} in",
        unit="ms",
        num_tokens=INPUT_TOKENS,
        measure=_first_token,
    ),
    _rate(
        "decode",
        f"decode, one stream, {INPUT_TOKENS} in, {OUTPUT_TOKENS} out",
        groups=((1, INPUT_TOKENS), (1, INPUT_TOKENS)),
        measure=_decode,
        limit=_decode_limit,
    ),
    _rate(
        "prefill",
        f"prefill, one prompt of {LONG_PROMPT}",
        groups=((1, LONG_PROMPT),),
        measure=_prefill,
        limit=_prefill_limit,
    ),
    _streams(8),
    _streams(32),
    _streams(64),
    _rate(
        "prefix",
        f"{PREFIX_REQUESTS} x ({LONG_PROMPT} shared + {PREFIX_SUFFIX} in, {PREFIX_OUTPUT} out)",
        groups=((PREFIX_REQUESTS, LONG_PROMPT + PREFIX_SUFFIX),),
        measure=_throughput(PREFIX_OUTPUT),
        limit=_prefix_limit,
        shared_tokens=LONG_PROMPT,
    ),
    _cost(
        "memory",
        f"peak memory (PSS of all processes), one stream of {INPUT_TOKENS} + {OUTPUT_TOKENS}",
        unit="MiB",
        num_tokens=INPUT_TOKENS,
        measure=_memory,
        is_timed=False,
        is_fresh=True,
    ),
)
