"""Supervisor: keeps a generation of child processes alive behind the port."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable

from msgspec.structs import replace

from chiplet.crash import place_of
from chiplet.errors import ConfigError, EngineError, EngineRestarted
from chiplet.ipc.messages import (
    DetokenizerReady,
    EngineReady,
    Failed,
    Recovered,
    Refused,
    Stats,
    StepText,
)
from chiplet.server.engine_client import EngineClient, EngineLink
from chiplet.server.health import EngineStatus, Health, wait_silence
from chiplet.server.metrics import Metrics
from chiplet.server.processes import Generation
from chiplet.server.suspicion import Suspicion

MAX_DEATHS = 5
DEATHS_WINDOW_S = 60.0
"""So many deaths within this time are a defect that another start will not mend."""

LAST_WORDS_S = 0.2
"""How long a dead child's last messages may take to arrive."""

logger = logging.getLogger(__name__)


class Supervisor:
    """Starts child processes again when one of them dies or hangs, and tells the client.

    Args:
        health: is kept up to date.
        silence_limit_s: how long a busy engine may be silent; 0 for ever.
        start: makes a new generation, whose engine does without the implementations given.
        on_ready: called once, when the first generation is ready.
    """

    def __init__(
        self,
        client: EngineClient,
        metrics: Metrics,
        health: Health,
        *,
        silence_limit_s: float,
        start: Callable[[tuple[str, ...]], Generation],
        on_ready: Callable[[EngineReady], None],
    ) -> None:
        self._client = client
        self._metrics = metrics
        self._health = health
        self._silence_limit_s = silence_limit_s
        self._start = start
        self._on_ready = on_ready
        self._was_ready = False
        self._suspicion = Suspicion()
        self._deaths_s: deque[float] = deque(maxlen=MAX_DEATHS)

    async def run(self, generation: Generation) -> None:
        """Serve with one generation after the other, from `generation` on; stops each.

        Raises:
            ConfigError: the first one never became ready.
            EngineError: they die too often.
        """
        while True:
            try:
                failure = await self._follow(generation)
                failure = self._explained(failure, generation)
                self._give_up_if_hopeless(failure)
                self._note_death(failure)
                # What a plugin does at the end may take seconds; clients are answered meanwhile.
                await asyncio.to_thread(generation.end_children)
            finally:
                generation.stop()
            generation = self._start(self._health.denied)

    async def _follow(self, generation: Generation) -> Failed:
        """Deal out a generation's messages until it is dead; why it died."""
        receiving = asyncio.create_task(self._receive(generation))
        dying = asyncio.create_task(generation.wait_death())
        hanging = asyncio.create_task(
            wait_silence(self._health, self._silence_limit_s, lambda: self._client.num_open)
        )
        watching = {receiving, dying, hanging}
        try:
            await asyncio.wait(watching, return_when=asyncio.FIRST_COMPLETED)
            if not receiving.done():
                await asyncio.wait({receiving}, timeout=LAST_WORDS_S)
            if receiving.done():
                return receiving.result()
            if dying.done():
                return dying.result()
            stack = await asyncio.to_thread(generation.kill_engine)
            return Failed(f"{hanging.result()} {self._suspicion.where(stack)}".rstrip())
        finally:
            for task in watching:
                task.cancel()
            self._client.disconnect(
                EngineRestarted("The engine died and is being started again; repeat the request.")
            )

    async def _receive(self, generation: Generation) -> Failed:
        """Deal out messages until one says that a child cannot go on."""
        engine: EngineReady | None = None
        has_detokenizer = False
        while True:
            message = await generation.inbox.receive()
            self._health.note_sign()
            match message:
                case StepText():
                    self._client.take_text(message)
                case Stats(values=values):
                    self._metrics.engine.update(values)
                case Refused():
                    self._client.take_refusal(message)
                case Recovered(text=text, plan=plan, in_use=in_use):
                    self._client.take_plan(plan)
                    self._suspicion.know(in_use, str(plan.get("platform")))
                    self._metrics.demotions.inc()
                    self._health.note_event(text)
                case Failed():
                    return message
                case EngineReady():
                    engine = message
                case DetokenizerReady():
                    has_detokenizer = True
            if engine is not None and has_detokenizer and not self._client.is_ready:
                self._connect(generation, engine)

    def _connect(self, generation: Generation, engine: EngineReady) -> None:
        self._client.connect(EngineLink(generation.engine, engine))
        self._suspicion.know(engine.in_use, str(engine.plan.get("platform")))
        self._health.status = EngineStatus.OK
        self._health.ranks = engine.ranks
        if self._was_ready:
            logger.warning("The engine is ready again.")
            return
        self._was_ready = True
        self._on_ready(engine)

    def _explained(self, failure: Failed, generation: Generation) -> Failed:
        """A crash whose last words name nobody, with what the stack or its repetition shows."""
        if not failure.is_crash or failure.deny:
            return failure
        stack = generation.last_stack()
        if not self._was_ready:
            place = place_of(stack)
            return replace(failure, remedy=f"It was at {place}." if place else failure.remedy)
        accusation = self._suspicion.accuse(stack)
        return replace(
            failure, message=f"{failure.message} {accusation.text}", deny=accusation.deny
        )

    def _note_death(self, failure: Failed) -> None:
        health = self._health
        health.status = EngineStatus.RESTARTING
        health.restarts += 1
        health.denied = tuple(dict.fromkeys((*health.denied, *failure.deny)))
        without = f" without {', '.join(failure.deny)}" if failure.deny else ""
        text = f"{failure.message} It is being started again{without}."
        health.note_event(text)
        logger.error("%s", text)
        self._metrics.engine_restarts.inc()

    def _give_up_if_hopeless(self, failure: Failed) -> None:
        if not self._was_ready:
            raise ConfigError(failure.message, remedy=failure.remedy)
        self._deaths_s.append(time.monotonic())
        if len(self._deaths_s) == MAX_DEATHS and (
            self._deaths_s[-1] - self._deaths_s[0] <= DEATHS_WINDOW_S
        ):
            raise EngineError(
                f"The engine died {MAX_DEATHS} times within {DEATHS_WINDOW_S:.0f} s; the last "
                f"time: {failure.message} {failure.remedy}".rstrip()
            )
