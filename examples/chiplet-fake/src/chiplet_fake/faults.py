"""Faults on demand, for tests of what core does about them.

The variable `CHIPLET_FAKE_FAULTS` of the environment names them, separated by commas:

    probe=hang | probe=crash | probe=raise
    assess=raise
    build=raise
    run=wrong          wrong numbers, from the first call on
    run=late:N         wrong numbers, from call N on
    run=raise:N        a Python exception in call N and ever after
    run=fault:N        the device fails while it runs call N, and does nothing any more

All but those of the probe are faults of a linear provider, `fake-broken`, which is offered for that
alone and computes what the reference does. Calls are counted over all layers of a process, those of
the check at start included.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

VARIABLE = "CHIPLET_FAKE_FAULTS"

_ALLOWED = {
    "probe": ("hang", "crash", "raise"),
    "assess": ("raise",),
    "build": ("raise",),
    "run": ("wrong", "late", "raise", "fault"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What goes wrong where; an empty text is nothing.

    Attributes:
        at_call: first call of `run` that is hit.
    """

    probe: str = ""
    assess: str = ""
    build: str = ""
    run: str = ""
    at_call: int = 1

    @classmethod
    def parse(cls, text: str) -> Faults:
        """Faults as the variable has them.

        Raises:
            ValueError: one is unknown; the message says what is allowed.
        """
        places: dict[str, str] = {}
        at_call = 1
        for each in filter(None, map(str.strip, text.split(","))):
            place, _, kind = each.partition("=")
            kind, _, number = kind.partition(":")
            if kind not in _ALLOWED.get(place, ()):
                allowed = (f"{name}={kind}" for name, kinds in _ALLOWED.items() for kind in kinds)
                raise ValueError(f"{VARIABLE} has '{each}'; allowed: {', '.join(allowed)}")
            if number:
                at_call = int(number)
            places[place] = kind
        return cls(**places, at_call=at_call)

    @property
    def breaks_linear(self) -> bool:
        """Whether a broken provider is wanted."""
        return bool(self.assess or self.build or self.run)

    def at_probe(self) -> None:
        """Hang, crash or raise, if that is wanted of the probe."""
        if self.probe == "hang":
            time.sleep(3600)
        elif self.probe == "crash":
            os.abort()
        elif self.probe == "raise":
            raise RuntimeError("the probe was told to fail")


FAULTS = Faults.parse(os.environ.get(VARIABLE, ""))
"""Those of this process."""
