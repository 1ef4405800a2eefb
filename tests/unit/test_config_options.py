"""Settings given by name: types and limits are checked, nothing is guessed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chiplet.config import EngineConfig
from chiplet.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("page_size", "16", "page_size is '16'; allowed: a whole number."),
        ("page_size", 16.0, "page_size is 16.0; allowed: a whole number."),
        ("page_size", True, "page_size is True; allowed: a whole number."),
        ("page_size", None, "page_size is None; allowed: a whole number."),
        ("page_size", 0, "page_size is 0; allowed: 1 or more."),
        ("page_size", 2000, "page_size is 2000; allowed: at most 1024."),
        ("radix_cache", "no", "radix_cache is 'no'; allowed: True or False."),
        ("radix_cache", 0, "radix_cache is 0; allowed: True or False."),
        ("mem_fraction_static", "0.5", "mem_fraction_static is '0.5'; allowed: a number."),
        ("mem_fraction_static", float("nan"), "mem_fraction_static is nan; allowed: 0.01 or more."),
        ("context_length", "8", "context_length is '8'; allowed: a whole number or None."),
        ("device", 0, "device is 0; allowed: text or None."),
        ("dtype", "half", "dtype is 'half'; allowed: auto, float32, float16, bfloat16."),
        (
            "use",
            "attention=reference",
            "use is 'attention=reference'; allowed: a list of texts. Write it like "
            "use=('attention=reference',).",
        ),
        ("plugins", (1,), "plugins is (1,); allowed: a list of texts."),
        ("page_sise", 16, "There is no option 'page_sise'. Did you mean 'page_size'?"),
    ],
)
def test_a_wrong_value_is_refused(name: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        EngineConfig.from_options(**{name: value})
    assert str(caught.value) == message


def test_right_values_are_taken_and_count_as_explicit() -> None:
    config = EngineConfig.from_options(
        model=Path("a/b"), page_size=1, mem_fraction_static=1, use=["linear=reference"], device=None
    )
    assert config.model.model == str(Path("a/b"))
    assert (config.cache.page_size, config.cache.mem_fraction_static) == (1, 1)
    assert config.device.use == ("linear=reference",)
    assert config.explicit == {
        "model.model",
        "cache.page_size",
        "cache.mem_fraction_static",
        "device.use",
        "device.device",
    }
