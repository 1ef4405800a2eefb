"""Code of libraries that is let go of: no longer resident, and still there."""

import re
from pathlib import Path

import pytest
import torch

from chiplet.models.code_pages import release_code


def _resident_code_kib() -> int:
    """Of all mappings of torch's library that can be run."""
    text = Path("/proc/self/smaps").read_text()
    entries = re.findall(r"r-xp .*libtorch_cpu\.so\n(?:\w+:.*\n)*?Rss: +(\d+) kB", text)
    return sum(map(int, entries))


def test_code_is_resident_again_only_where_it_is_used() -> None:
    x = torch.randn(64, 64)
    expected = (x @ x).softmax(-1)
    before = _resident_code_kib()
    assert before > 4_000
    assert release_code() > 100 << 20
    assert _resident_code_kib() < before / 2
    assert torch.equal((x @ x).softmax(-1), expected)


def test_a_system_that_tells_nothing_keeps_its_pages(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("chiplet.models.code_pages._MAPS", tmp_path / "missing")
    assert release_code() == 0
