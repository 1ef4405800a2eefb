"""Plugins: found, checked, probed and chosen from at start-up; never in the hot path."""

from chiplet.plugins.device import (
    ChosenDevice,
    DeviceChoice,
    PendingDevice,
    begin_choice,
    choose_device,
)
from chiplet.plugins.discovery import discover
from chiplet.plugins.explain import render
from chiplet.plugins.plan import Choice, Rejection, SelectionPlan
from chiplet.plugins.plugin_set import Plugin, PluginSet, ProbeResult, Quarantined
from chiplet.plugins.probe import probe_all
from chiplet.plugins.proposals import apply_proposals
from chiplet.plugins.selection import Selector

__all__ = [
    "Choice",
    "ChosenDevice",
    "DeviceChoice",
    "PendingDevice",
    "Plugin",
    "PluginSet",
    "ProbeResult",
    "Quarantined",
    "Rejection",
    "SelectionPlan",
    "Selector",
    "apply_proposals",
    "begin_choice",
    "choose_device",
    "discover",
    "probe_all",
    "render",
]
