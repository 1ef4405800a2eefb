"""Text of a selection plan, as `chiplet explain` prints it."""

from __future__ import annotations

from collections.abc import Iterator

from chiplet.plugins.plan import Choice, SelectionPlan


def render(plan: SelectionPlan) -> str:
    """The plan as lines of text.

    A line per choice: operation, uses, request, winner with its version, tier and score; below
    it a line per provider that was rejected.
    """
    heads = [
        (f"{each.operation} x{each.num_uses}", each.request, f"{each.provider} ({_source(each)})")
        for each in plan.choices
    ]
    widths = [max((len(head[column]) for head in heads), default=0) for column in range(3)]
    lines = [f"device {plan.device} ({plan.device_name}), platform {plan.platform}"]
    for choice, head in zip(plan.choices, heads, strict=True):
        columns = [text.ljust(width) for text, width in zip(head, widths, strict=True)]
        lines.append("  ".join([*columns, _standing(choice)]).rstrip())
        lines.extend(_rejections(choice))
    return "\n".join(lines)


def _source(choice: Choice) -> str:
    return f"{choice.distribution} {choice.version}"


def _standing(choice: Choice) -> str:
    pinned = ", pinned" if choice.is_pinned else ""
    note = f"  {choice.note}" if choice.note else ""
    return f"{choice.tier} {choice.score}{pinned}{note}"


def _rejections(choice: Choice) -> Iterator[str]:
    width = max((len(each.provider) for each in choice.rejections), default=0)
    for each in choice.rejections:
        pin = f"    pin: {each.pin}" if each.pin else ""
        yield f"   rejected {each.provider.ljust(width)}: {'; '.join(each.reasons)}{pin}"
