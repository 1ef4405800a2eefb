"""SelectionPlan: who serves each operation, why, and why the others do not."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from chiplet.api import Tier


@dataclass(frozen=True, slots=True)
class Rejection:
    """A provider that does not serve an operation.

    Attributes:
        provider: the word that `--use` takes.
        reasons: one sentence each, without a period.
        pin: the flag that would choose it, or empty if it cannot serve the operation.
    """

    provider: str
    reasons: tuple[str, ...]
    pin: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Who serves one request.

    Attributes:
        operation: like 'attention/global', 'linear/qkv_proj' or 'ops/rms_norm'.
        request: the request in a few words, like '576 -> 960 bfloat16'.
        num_uses: how often layers asked for it.
        provider: the winner, by the word that `--use` takes.
        distribution: where the winner comes from.
        note: what the winner says of itself.
        is_pinned: the user chose it.
    """

    operation: str
    request: str
    num_uses: int
    provider: str
    distribution: str
    version: str
    score: int
    note: str
    is_pinned: bool
    rejections: tuple[Rejection, ...]

    @property
    def tier(self) -> str:
        """The tier that the score reaches, like 'vendor'."""
        return max(each for each in Tier if each <= max(self.score, 0)).name.lower()


@dataclass(frozen=True, slots=True)
class SelectionPlan:
    """Every choice made at start-up.

    Attributes:
        device: like 'cpu:0'.
        device_name: for people.
        platform: distribution of the platform plugin.
        choices: in the order in which the model asked.
    """

    device: str
    device_name: str
    platform: str
    choices: tuple[Choice, ...]

    def to_json(self) -> dict[str, Any]:
        """The plan as plain values, ready for JSON."""
        choices = [asdict(each) | {"tier": each.tier} for each in self.choices]
        return {
            "device": self.device,
            "device_name": self.device_name,
            "platform": self.platform,
            "choices": choices,
        }
