"""The messages between server, engine and detokenizer: all that crosses a process boundary.

    server -> engine         AddRequest, Abort
    engine -> detokenizer    StepTokens, once per step
    detokenizer -> engine    Abort, when a stop string ended an answer
    detokenizer -> server    DetokenizerReady, StepText
    engine -> server         EngineReady, Stats, Refused, Recovered
    either child -> server   Failed

A new answer's text options ride along the engine's pipe to the detokenizer (`AnswerOpened` within
`StepTokens`), so that they always arrive before the answer's first token.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from chiplet.config import EngineConfig
from chiplet.crash import InUse
from chiplet.request import FinishReason, RequestLimits, RequestOutput, TokenIds
from chiplet.sampling_params import SamplingParams
from chiplet.scheduler.stats import SchedulerStats


class ChildSettings(msgspec.Struct, frozen=True):
    """What a child process reads from its standard input before anything else.

    Attributes:
        directory: folder of the generation's sockets.
    """

    directory: str
    config: EngineConfig


class AddRequest(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """One more answer is wanted.

    Attributes:
        prompt: token ids as `pack_token_ids` gives them.
        sampling: checked, and `n` is 1.
        continues_prompt: the answer's text goes on where the prompt's ends, as no chat's does.
    """

    request_id: str
    prompt: bytes
    sampling: SamplingParams
    continues_prompt: bool


class Abort(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Nobody wants the rest of these answers; unknown and ended ones are ignored."""

    request_ids: tuple[str, ...]


class AnswerOpened(msgspec.Struct, frozen=True, array_like=True):
    """How an answer's tokens become text."""

    request_id: str
    stop: tuple[str, ...]
    skip_special_tokens: bool
    include_stop_in_output: bool
    continues_prompt: bool


class StepTokens(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """What one step brought to all answers.

    Attributes:
        opened: answers whose first output may be among `outputs`.
        closed: answers that were aborted; forget them after `outputs`.
    """

    opened: tuple[AnswerOpened, ...]
    outputs: tuple[RequestOutput, ...]
    closed: tuple[str, ...]


class TokenText(msgspec.Struct, frozen=True, array_like=True):
    """One token with its log-probability, as clients see it.

    Attributes:
        text: the token's text; bytes that are no UTF-8 by themselves become U+FFFD.
        raw: the token's bytes.
        top: the likeliest tokens at this position, likeliest first.
    """

    text: str
    raw: bytes
    logprob: float
    top: tuple[TokenText, ...] = ()


class AnswerDelta(msgspec.Struct, frozen=True, array_like=True):
    """What one step brought to one answer, as text.

    Attributes:
        text: may be empty, while a character or a possible stop string is incomplete.
        num_output_tokens: tokens in the answer so far.
        finish_reason: set on the last delta.
        logprobs: one entry per new token, if asked for.
        prompt_logprobs: prompt positions 1 onwards, with the first delta, if asked for.
        error: what went wrong, with `FinishReason.ERROR`.
    """

    request_id: str
    text: str
    num_cached_tokens: int
    num_output_tokens: int
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenText, ...] = ()
    prompt_logprobs: tuple[TokenText, ...] = ()
    error: str | None = None


class StepText(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """What one step brought to all answers, as text."""

    deltas: tuple[AnswerDelta, ...]


class EngineReady(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The engine has loaded its model; these are its facts.

    Attributes:
        model_name: name under which clients ask for it.
        limits: what requests it can take.
        banner: lines for the person who started the server.
        plan: who serves each operation, for `/debug/plan`.
        in_use: whom a restarted engine may do without.
        ranks: where each rank is, for people; empty if there is one.
    """

    model_name: str
    device: str
    dtype: str
    limits: RequestLimits
    banner: tuple[str, ...]
    plan: dict[str, Any]
    in_use: tuple[InUse, ...] = ()
    ranks: tuple[str, ...] = ()


class DetokenizerReady(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The detokenizer has loaded its tokenizer."""


class Stats(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Counters of the engine at one moment; totals count from the engine's start."""

    values: SchedulerStats


class Refused(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The engine does not take a request.

    Attributes:
        retry_after_s: set if the same request may be taken later.
    """

    request_id: str
    message: str
    code: str
    param: str | None = None
    retry_after_s: int | None = None


class Recovered(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """A step failed, and the engine goes on without what was to blame.

    Attributes:
        text: for people: what failed and is done without.
        plan: who serves each operation from now on, for `/debug/plan`.
        in_use: whom a restarted engine may do without from now on.
    """

    text: str
    plan: dict[str, Any]
    in_use: tuple[InUse, ...] = ()


class Failed(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The sender cannot go on and ends.

    Attributes:
        deny: what to do without when it is started again, as `--deny` takes it.
        is_crash: a process or its device broke down while it worked; who denies nobody does not
            know whose fault it was.
    """

    message: str
    remedy: str = ""
    deny: tuple[str, ...] = ()
    is_crash: bool = False


ToEngine = AddRequest | Abort
ToDetokenizer = StepTokens
ToServer = EngineReady | DetokenizerReady | StepText | Stats | Refused | Recovered | Failed


def pack_token_ids(token_ids: TokenIds) -> bytes:
    """Token ids, `[num_tokens] int32`, as bytes of this machine's order."""
    return token_ids.tobytes()


def unpack_token_ids(data: bytes) -> TokenIds:
    """Token ids that `pack_token_ids` packed, `[num_tokens] int32`, read-only."""
    return np.frombuffer(data, dtype=np.int32)
