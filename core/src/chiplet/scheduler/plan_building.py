"""From what the scheduler granted to the StepPlan that says it to the runner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chiplet.request import TokenIds
from chiplet.scheduler.slot_table import Running, Slots, SlotTable
from chiplet.step import Chunks, Int32s, PageUpdates, SlotAdmission, StepPlan

NO_INT32S: Int32s = np.empty(0, dtype=np.int32)


@dataclass(frozen=True, slots=True)
class Grant:
    """Known tokens `[start, start + length)` of a request may be computed."""

    running: Running
    start: int
    length: int

    @property
    def is_last(self) -> bool:
        """Nothing known is left after it: a next token is picked."""
        return self.start + self.length == len(self.running.token_ids)

    def token_ids(self) -> TokenIds:
        """The tokens, a view."""
        return self.running.token_ids[self.start : self.start + self.length]


def build_plan(
    step_id: int,
    table: SlotTable,
    decodes: Slots,
    grants: Sequence[Grant],
    admissions: tuple[SlotAdmission, ...],
) -> StepPlan:
    """The plan of a step; nothing in it changes when the table does.

    Args:
        step_id: counts up from 0.
        table: with positions as they were before the step.
        decodes: slots that compute the token picked last.
        grants: tokens of requests in prefill.
        admissions: slots that change hands.
    """
    # Stable: decodes come first, then single known tokens, then longer chunks.
    grants = sorted(grants, key=lambda grant: grant.length > 1)
    rows = np.concatenate([decodes, [grant.running.slot for grant in grants]]).astype(np.int32)
    lengths = np.ones(len(rows), dtype=np.int32)
    lengths[len(decodes) :] = [grant.length for grant in grants]
    is_sampled = np.ones(len(rows), dtype=np.bool_)
    is_sampled[len(decodes) :] = [grant.is_last for grant in grants]
    is_fed = np.zeros(len(rows), dtype=np.bool_)
    is_fed[: len(decodes)] = table.positions[decodes] >= table.num_known[decodes]
    starts = table.positions[rows]
    answer_indices = starts + lengths - table.num_prompt_tokens[rows]
    return StepPlan(
        step_id=step_id,
        chunks=Chunks(
            slots=rows,
            starts=starts,
            lengths=lengths,
            is_sampled=is_sampled,
            is_fed=is_fed,
            output_indices=np.where(is_sampled, answer_indices, 0).astype(np.int32),
        ),
        num_decodes=int(np.count_nonzero(lengths == 1)),
        token_ids=_token_ids(table, decodes, is_fed, grants),
        admissions=admissions,
        page_updates=_page_updates(table, rows),
        prompt_targets=_prompt_targets(len(decodes), grants),
    )


def admission_of(running: Running) -> SlotAdmission:
    """What the runner must know of a request that takes a slot."""
    request = running.request
    return SlotAdmission(
        slot=running.slot,
        sampling=request.sampling,
        seed=request.seed,
        prompt_token_ids=request.prompt_token_ids,
        output_token_ids=np.asarray(request.output_token_ids, dtype=np.int32),
        end_token_ids=tuple(sorted(request.end_token_ids)),
    )


def _token_ids(
    table: SlotTable, decodes: Slots, is_fed: NDArray[np.bool_], grants: Sequence[Grant]
) -> TokenIds:
    decoded = np.where(is_fed[: len(decodes)], 0, table.last_tokens[decodes]).astype(np.int32)
    return np.concatenate([decoded, *(grant.token_ids() for grant in grants)])


def _page_updates(table: SlotTable, rows: Int32s) -> PageUpdates:
    """Pages of the step's requests that the runner does not know of yet.

    Mutates: the table's `num_sent_pages`.
    """
    news = rows[table.num_sent_pages[rows] < table.num_pages[rows]]
    if not len(news):
        return PageUpdates(NO_INT32S, NO_INT32S, NO_INT32S)
    firsts = table.num_sent_pages[news].tolist()
    counts = table.num_pages[news] - table.num_sent_pages[news]
    table.num_sent_pages[news] = table.num_pages[news]
    leases = [table.running(slot).lease for slot in news.tolist()]
    pairs = list(zip(leases, firsts, strict=True))
    return PageUpdates(
        slots=np.repeat(news, counts),
        indices=np.concatenate(
            [np.arange(first, lease.num_pages, dtype=np.int32) for lease, first in pairs]
        ),
        page_ids=np.concatenate([lease.page_ids[first:] for lease, first in pairs]),
    )


def _prompt_targets(num_decodes: int, grants: Sequence[Grant]) -> Int32s:
    if all(grant.running.prompt_logprobs is None for grant in grants):
        return NO_INT32S
    parts = [np.full(num_decodes, -1, dtype=np.int32)]
    for grant in grants:
        targets = np.full(grant.length, -1, dtype=np.int32)
        if grant.running.prompt_logprobs is not None:
            prompt = grant.running.request.prompt_token_ids
            following = prompt[grant.start + 1 : grant.start + grant.length + 1]
            targets[: len(following)] = following
        parts.append(targets)
    targets = np.concatenate(parts)
    return targets if (targets >= 0).any() else NO_INT32S
