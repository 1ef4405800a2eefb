"""SelectionPlan: who serves each operation, why, and why the others do not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from chiplet.api import Numerics, Part, Tier
from chiplet.plugins.request_key import digest


@dataclass(frozen=True, slots=True)
class Rejection:
    """A provider that does not serve an operation.

    Attributes:
        provider: the word that `--use` takes.
        reasons: one sentence each, without a period.
        pin: the flag that would choose it, or empty if it cannot serve the operation.
        has_failed: it said that it serves the request, and then could not, or not rightly.
    """

    provider: str
    reasons: tuple[str, ...]
    pin: str = ""
    has_failed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A provider that serves calls of some sizes.

    Attributes:
        provider: by the word that `--use` takes.
        distribution: where it comes from.
        max_tokens: it serves calls of at most so many tokens that nobody before it serves; None
            for all that are left.
        note: what it says of itself.
        numerics: what it computes beside the formula; see `chiplet.api.Numerics`.
        part: of the steps that it serves; see `chiplet.api.Part`.
    """

    provider: str
    distribution: str
    version: str
    score: int
    note: str = ""
    max_tokens: int | None = None
    numerics: Numerics = Numerics.EXACT
    part: Part = Part.ALL

    @property
    def tier(self) -> str:
        """The tier that the score reaches, like 'vendor'."""
        return max(each for each in Tier if each <= max(self.score, 0)).name.lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Who serves one request.

    Attributes:
        operation: like 'attention/global', 'linear/qkv_proj' or 'ops/rms_norm'.
        request: the request in a few words, like '576 -> 960 bfloat16'.
        key: the whole request; see `request_key`.
        num_uses: how often layers asked for it.
        servers: a table by size of the call, small ones first, or who serves a part of the steps
            before who serves the rest; mostly one that serves all.
        is_pinned: the user chose it.
        basis: what decided, like 'score', 'pin', 'plan file' or 'measured'.
        check: outcome of the comparison with the reference at start, like 'equal' or 'not run'.
        timings_us: what was measured, by provider and number of tokens.
    """

    operation: str
    request: str
    key: str
    num_uses: int
    servers: tuple[Server, ...]
    is_pinned: bool
    rejections: tuple[Rejection, ...]
    basis: str = "score"
    check: str = "not run"
    timings_us: Mapping[str, Mapping[int, float]] | None = None

    @property
    def server(self) -> Server:
        """Who serves the largest calls; of most operations, all."""
        return self.servers[-1]


@dataclass(frozen=True, slots=True)
class SelectionPlan:
    """Every choice made at start-up.

    Attributes:
        device: like 'cpu:0'.
        device_name: for people.
        platform: distribution of the platform plugin.
        platform_version: its version.
        choices: in the order in which the model asked.
    """

    device: str
    device_name: str
    platform: str
    platform_version: str
    choices: tuple[Choice, ...]

    @property
    def hash(self) -> str:
        """The same on all ranks and machines that run the same implementations of the same work.

        Device index and name, scores, notes and measured times are left out.
        """
        kind = self.device.partition(":")[0]
        lines = [f"{kind} {self.platform} {self.platform_version}"]
        lines += sorted(json.dumps([each.key, *_identities(each.servers)]) for each in self.choices)
        return digest("\n".join(lines))

    def failures(self) -> Iterator[str]:
        """A line for each provider that was to serve something and failed at it."""
        failed: dict[str, list[tuple[str, Rejection]]] = {}
        for choice in self.choices:
            for each in choice.rejections:
                if each.has_failed:
                    failed.setdefault(each.provider, []).append((choice.operation, each))
        for provider, found in failed.items():
            operations = ", ".join(dict.fromkeys(operation for operation, _ in found))
            reason = found[0][1].reasons[0]
            yield f"Provider {provider} is not used for {operations}: {reason}"

    def to_json(self) -> dict[str, Any]:
        """The plan as plain values, ready for JSON."""
        return {
            "hash": self.hash,
            "device": self.device,
            "device_name": self.device_name,
            "platform": self.platform,
            "platform_version": self.platform_version,
            "choices": [_choice_json(each) for each in self.choices],
        }


def _identities(servers: tuple[Server, ...]) -> list[list[object]]:
    found: list[list[object]] = []
    for each in servers:
        found.append([each.provider, each.distribution, each.version, each.max_tokens])
        if each.part is not Part.ALL:
            found[-1].append(each.part)
    return found


def _choice_json(choice: Choice) -> dict[str, Any]:
    values = asdict(choice)
    values["servers"] = [asdict(each) | {"tier": each.tier} for each in choice.servers]
    last = values["servers"][-1]
    named = ("provider", "distribution", "version", "score", "note", "tier")
    return values | {name: last[name] for name in named}
