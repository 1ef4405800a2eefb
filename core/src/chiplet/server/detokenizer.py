"""Detokenizer: turns each step's tokens into each answer's text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from chiplet.ipc.messages import AnswerDelta, AnswerOpened, StepText, StepTokens, TokenText
from chiplet.request import FinishReason, RequestOutput, TokenLogprobs
from chiplet.text.answer_text import AnswerText, TextOptions
from chiplet.text.tokenizer import Tokenizer


@dataclass(slots=True)
class _Answer:
    text: AnswerText
    keeps_stop: bool


class Detokenizer:
    """The texts of all answers that are being written."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._answers: dict[str, _Answer] = {}

    def take(self, step: StepTokens) -> tuple[StepText, tuple[str, ...]]:
        """The text that a step brought, and the answers that a stop string ended with it.

        The engine does not know of stop strings: the answers named must be aborted there.
        """
        for opened in step.opened:
            self._open(opened)
        deltas: list[AnswerDelta] = []
        stopped: list[str] = []
        for output in step.outputs:
            answer = self._answers.get(output.request_id)
            if answer is None:
                continue  # Ended by a stop string or aborted while this token was on its way.
            delta = self._push(answer, output)
            deltas.append(delta)
            if delta.finish_reason is not None:
                del self._answers[output.request_id]
                if output.finish_reason is None:
                    stopped.append(output.request_id)
        for request_id in step.closed:
            self._answers.pop(request_id, None)
        return StepText(tuple(deltas)), tuple(stopped)

    def _open(self, opened: AnswerOpened) -> None:
        options = TextOptions(
            stop=opened.stop,
            skip_special_tokens=opened.skip_special_tokens,
            include_stop_in_output=opened.include_stop_in_output,
            keeps_leading_space=opened.continues_prompt,
        )
        text = AnswerText(self._tokenizer, options)
        self._answers[opened.request_id] = _Answer(text, opened.include_stop_in_output)

    def _push(self, answer: _Answer, output: RequestOutput) -> AnswerDelta:
        logprobs = output.logprobs or ()
        if output.stop_token_id is not None and not answer.keeps_stop:
            # The token that ended the answer is no part of it.
            logprobs = logprobs[:-1]
        text = answer.text.push(
            output.token_ids,
            is_last=output.finish_reason is not None,
            stop_token_id=output.stop_token_id,
        )
        return AnswerDelta(
            request_id=output.request_id,
            text=text.text,
            num_cached_tokens=output.num_cached_tokens,
            num_output_tokens=output.num_output_tokens,
            finish_reason=FinishReason.STOP if text.is_stopped else output.finish_reason,
            logprobs=self._logprobs(logprobs),
            prompt_logprobs=self._logprobs(output.prompt_logprobs or ()),
            error=output.error,
        )

    def _logprobs(self, positions: Iterable[TokenLogprobs]) -> tuple[TokenText, ...]:
        return tuple(
            self._token(
                position.token_id,
                position.logprob,
                tuple(map(self._token, position.top_token_ids, position.top_logprobs)),
            )
            for position in positions
        )

    def _token(self, token_id: int, logprob: float, top: tuple[TokenText, ...] = ()) -> TokenText:
        raw = self._tokenizer.token_bytes(token_id)
        return TokenText(raw.decode("utf-8", errors="replace"), raw, logprob, top)
