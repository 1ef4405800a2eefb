"""From what a step gave to what each request is told."""

from __future__ import annotations

from chiplet.request import FinishReason, Request, RequestOutput, TokenLogprobs
from chiplet.step import LogprobRows


def logprobs_of(rows: LogprobRows, row: int, token_id: int, num_top: int) -> TokenLogprobs:
    """One row, with as many alternatives as the request wants."""
    return TokenLogprobs(
        token_id=token_id,
        logprob=float(rows.chosen[row]),
        top_token_ids=tuple(rows.top_token_ids[row, :num_top].tolist()),
        top_logprobs=tuple(rows.top[row, :num_top].tolist()),
    )


def reason_to_finish(request: Request, max_answer_tokens: int) -> FinishReason | None:
    """Why the answer ends with its last token, if it does."""
    num_output_tokens = len(request.output_token_ids)
    may_end = num_output_tokens > request.sampling.min_tokens
    if may_end and request.output_token_ids[-1] in request.end_token_ids:
        return FinishReason.STOP
    if num_output_tokens >= max_answer_tokens:
        return FinishReason.LENGTH
    return None


def token_output(
    request: Request,
    logprobs: TokenLogprobs | None,
    prompt_logprobs: list[TokenLogprobs] | None,
) -> RequestOutput:
    """What a request is told of the token it got last."""
    token_id = request.output_token_ids[-1]
    return RequestOutput(
        request_id=request.request_id,
        token_ids=(token_id,),
        num_prompt_tokens=request.num_prompt_tokens,
        num_cached_tokens=request.num_cached_tokens,
        num_output_tokens=len(request.output_token_ids),
        finish_reason=request.finish_reason,
        stop_token_id=token_id if request.finish_reason is FinishReason.STOP else None,
        logprobs=None if logprobs is None else (logprobs,),
        prompt_logprobs=None if prompt_logprobs is None else tuple(prompt_logprobs),
    )


def ending_output(request: Request) -> RequestOutput:
    """What a request is told that ends without a token: aborted, or by an error."""
    return RequestOutput(
        request_id=request.request_id,
        token_ids=(),
        num_prompt_tokens=request.num_prompt_tokens,
        num_cached_tokens=request.num_cached_tokens,
        num_output_tokens=len(request.output_token_ids),
        finish_reason=request.finish_reason,
        error=request.error,
    )
