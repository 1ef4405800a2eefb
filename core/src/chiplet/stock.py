"""Stock: a model filled with weights, and how many pages of keys and values fit beside it."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from chiplet.api import Dtype
from chiplet.assembly import Assembly, load
from chiplet.errors import ConfigError
from chiplet.runner.kv_pool import page_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Stock:
    """What a loaded model has.

    Attributes:
        num_pages: of keys and values, the same on every rank.
        ranks: for people, where each rank is; empty if there is one.
    """

    num_pages: int
    ranks: tuple[str, ...] = ()


class _RankStock(msgspec.Struct, frozen=True, array_like=True):
    """What a rank tells the others of its stock."""

    num_pages: int
    place: str


def take_stock(parts: Assembly) -> Stock:
    """Fill the model with the checkpoint's weights, and count pages; every rank calls this.

    Raises:
        ConfigError: the weights do not fit the model, or no page fits beside them.
    """
    meeting = parts.seat.meeting
    if meeting is None:
        free_bytes = parts.platform.memory().free_bytes
        load(parts)
        return Stock(num_pages=_num_pages(parts, free_bytes))
    # Ranks may share the memory: none loads before all have looked, nor looks before all have.
    meeting.exchange(b"about to look")
    free_bytes = parts.platform.memory().free_bytes
    meeting.exchange(b"about to load")
    load(parts)
    meeting.exchange(b"loaded")
    num_pages = _num_pages(parts, free_bytes)
    place = parts.chosen.label + (f", {parts.share}" if parts.share else "")
    answers = meeting.exchange(msgspec.msgpack.encode(_RankStock(num_pages, place)))
    stocks = [msgspec.msgpack.decode(each, type=_RankStock) for each in answers]
    return Stock(
        num_pages=min(each.num_pages for each in stocks),
        ranks=tuple(f"rank {rank} on {each.place}" for rank, each in enumerate(stocks)),
    )


def _num_pages(parts: Assembly, free_bytes: int) -> int:
    """Pages that fit beside the weights, as far as they are of any use.

    Args:
        parts: with weights loaded.
        free_bytes: of the device before the weights came.
    """
    cache, schedule = parts.config.cache, parts.config.schedule
    weight_bytes = max(0, free_bytes - parts.platform.memory().free_bytes)
    budget = int(free_bytes * cache.mem_fraction_static) - weight_bytes - _activation_bytes(parts)
    per_page = page_bytes(parts.model.attention_layers())
    fitting = budget // per_page - 1  # and the page of padding
    assert parts.config.model.context_length is not None
    pages_per_request = -(-parts.config.model.context_length // cache.page_size)
    if cache.max_total_tokens is not None:
        wanted = -(-cache.max_total_tokens // cache.page_size)
    else:
        wanted = min(fitting, schedule.max_running_requests * pages_per_request)
    if wanted > fitting or wanted < 1:
        raise ConfigError(
            f"A KV cache of {max(wanted, 1) * cache.page_size} tokens takes "
            f"{max(wanted, 1) * per_page / 2**20:.0f} MiB; {max(budget, 0) / 2**20:.0f} MiB are "
            f"left of {free_bytes / 2**20:.0f} MiB free (mem-fraction-static "
            f"{cache.mem_fraction_static}).",
            remedy="Lower --max-total-tokens, raise --mem-fraction-static or free some memory.",
        )
    return wanted


def _activation_bytes(parts: Assembly) -> int:
    """A generous guess at what one step needs beside weights and pages."""
    model, schedule = parts.model_config, parts.config.schedule
    num_tokens = schedule.chunked_prefill_size + schedule.max_running_requests
    requests = [each.request for each in parts.model.attention_layers()]
    widest = max((each.num_heads * each.head_dim for each in requests), default=0)
    wider = max(0, widest - model.hidden_size)  # of latent attention: each head asks whole rows
    per_token = 6 * model.hidden_size + 4 * (model.intermediate_size + wider)
    size_bytes = Dtype(parts.config.model.dtype).size_bytes
    layer_bytes = num_tokens * per_token * size_bytes
    # Sampling: logits twice, a sort and running sums; and what penalties keep per slot.
    per_logit = 48 + 10
    logit_bytes = schedule.max_running_requests * model.vocab_size * per_logit
    prompt_logit_bytes = schedule.chunked_prefill_size * model.vocab_size * size_bytes
    return layer_bytes + logit_bytes + prompt_logit_bytes
