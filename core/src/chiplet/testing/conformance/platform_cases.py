"""What core relies on of a platform: memory, types, copies, events."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch

from chiplet.api import Dtype, Platform
from chiplet.testing.conformance.case import Case, Subject


def platform_cases() -> Iterator[Case]:
    """All cases."""
    for name, check in _CHECKS.items():
        yield _case(name, check)


def _case(name: str, check: Callable[[Platform], None]) -> Case:
    def run(subject: Subject) -> None:
        check(subject.target)

    return Case(family="platform", operation="platform", name=name, is_quick=True, check=run)


def _memory(platform: Platform) -> None:
    memory = platform.memory()
    assert 0 < memory.free_bytes <= memory.total_bytes, f"{memory} cannot be"


def _types(platform: Platform) -> None:
    names = platform.supported_dtypes()
    assert names, "no type at all"
    unknown = set(names) - {str(each) for each in Dtype}
    assert not unknown, f"unknown types {sorted(unknown)}; known: {', '.join(Dtype)}"


def _activate_twice(platform: Platform) -> None:
    platform.activate()
    platform.activate()
    assert torch.ones(1, device=platform.torch_device).item() == 1


def _there_and_back(platform: Platform) -> None:
    for dtype in (torch.int32, torch.int64, torch.float32, torch.bfloat16, torch.uint8):
        tensor = torch.arange(1000).to(dtype).view(10, 100)
        there = platform.to_device_async(tensor)
        back = platform.to_host_async(there)
        platform.record_event().wait()
        assert there.device.type == platform.torch_device.type, f"{there.device} is another device"
        assert back.device.type == "cpu", f"{back.device} is not the host"
        assert torch.equal(back, tensor), f"{dtype} changed on the way"


def _host_copies_stand(platform: Platform) -> None:
    tensor = platform.to_device_async(torch.arange(4))
    copy = platform.to_host_async(tensor)
    event = platform.record_event()
    event.wait()
    tensor += 1
    assert event.is_done(), "an event that was waited for is not done"
    assert copy.tolist() == [0, 1, 2, 3], "a copy to the host follows the device's tensor"


def _sources_may_go(platform: Platform) -> None:
    there = [platform.to_device_async(torch.full((1 << 16,), each)) for each in range(20)]
    platform.record_event().wait()
    wrong = [index for index, each in enumerate(there) if not bool((each == index).all())]
    assert not wrong, f"copies {wrong} lost their source, which the caller drops at once"


_CHECKS: Mapping[str, Callable[[Platform], None]] = {
    "memory is within bounds": _memory,
    "types are known": _types,
    "activate may be called twice": _activate_twice,
    "tensors survive the way there and back": _there_and_back,
    "copies to the host do not follow the device": _host_copies_stand,
    "copies to the device outlive their source": _sources_may_go,
}
