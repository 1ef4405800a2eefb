"""The marker that makes a function an implementation of a hook."""

from __future__ import annotations

import pluggy

hookimpl = pluggy.HookimplMarker("chiplet")
