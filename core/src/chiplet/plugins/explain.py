"""Text of a selection plan, as `chiplet explain` prints it."""

from __future__ import annotations

from collections.abc import Iterator

from chiplet.api import Numerics, Part
from chiplet.plugins.plan import Choice, SelectionPlan, Server


def render(plan: SelectionPlan) -> str:
    """The plan as lines of text.

    A line per choice: operation, uses, request, winner with its version, tier and score; below
    it, where sizes of calls go to different providers, a line for each; then what was measured,
    and a line per provider that was rejected.
    """
    heads = [
        (f"{each.operation} x{each.num_uses}", each.request, _name(each.server))
        for each in plan.choices
    ]
    widths = [max((len(head[column]) for head in heads), default=0) for column in range(3)]
    lines = [
        f"device {plan.device} ({plan.device_name}), platform {plan.platform} "
        f"{plan.platform_version}, plan {plan.hash}"
    ]
    for choice, head in zip(plan.choices, heads, strict=True):
        columns = [text.ljust(width) for text, width in zip(head, widths, strict=True)]
        lines.append("  ".join([*columns, _standing(choice)]).rstrip())
        lines.extend(_table(choice))
        lines.extend(_timings(choice))
        lines.extend(_rejections(choice))
    return "\n".join(lines)


def _name(server: Server) -> str:
    return f"{server.provider} ({server.distribution} {server.version})"


def _standing(choice: Choice) -> str:
    basis = {"pin": ", pinned", "plan file": ", by plan file", "measured": ", measured"}
    server = choice.server
    note = _note(server)
    rounding = "" if server.numerics is Numerics.EXACT else f", {server.numerics}"
    return f"{server.tier} {server.score}{basis.get(choice.basis, '')}{note}{rounding}"


def _note(server: Server) -> str:
    return f"  {server.note}" if server.note else ""


def _table(choice: Choice) -> Iterator[str]:
    if len(choice.servers) == 1:
        return
    first = 1
    is_parted = choice.servers[0].part is not Part.ALL
    for each in choice.servers:
        if is_parted:
            part = "all else" if each.part is Part.ALL else each.part
            yield f"   {part}: {_name(each)}, {each.tier} {each.score}{_note(each)}"
            continue
        sizes = f"{first} to {each.max_tokens}" if each.max_tokens else f"{first} and more"
        yield f"   {sizes} tokens: {_name(each)}, {each.tier} {each.score}"
        first = (each.max_tokens or 0) + 1


def _timings(choice: Choice) -> Iterator[str]:
    for provider, times in sorted((choice.timings_us or {}).items()):
        figures = ", ".join(f"{tokens}: {time:.0f}" for tokens, time in sorted(times.items()))
        yield f"   measured {provider}, us by tokens: {figures}"


def _rejections(choice: Choice) -> Iterator[str]:
    width = max((len(each.provider) for each in choice.rejections), default=0)
    for each in choice.rejections:
        pin = f"    pin: {each.pin}" if each.pin else ""
        yield f"   rejected {each.provider.ljust(width)}: {'; '.join(each.reasons)}{pin}"
