"""Discovery: finds plugins by entry point and loads them one at a time.

A manifest is read and compared with this core before a plugin's code is imported; then the plugin
is told its options. A plugin that fails at any step is set aside with the reason; the others load.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import Distribution, distributions
from pathlib import Path

import pluggy

from chiplet import hooks
from chiplet.api import HostFacts
from chiplet.config import DeviceOptions
from chiplet.errors import PluginError
from chiplet.plugins.host import host_facts
from chiplet.plugins.isolation import FAULTS
from chiplet.plugins.lifecycle import check_options, configure, make_context, read_options
from chiplet.plugins.manifest import (
    Manifest,
    ManifestError,
    check_api,
    check_hooks,
    check_requires,
    find_manifest,
    normalized,
    read_manifest,
)
from chiplet.plugins.plugin_set import CORE_DISTRIBUTION, Plugin, PluginSet, Quarantined
from chiplet.version import __version__

HOOKS = tuple(name for name, each in vars(hooks).items() if hasattr(each, "chiplet_spec"))
ENTRY_POINT_GROUP = "chiplet.plugins"
CORE_MODULES = (
    "chiplet.reference.plugin",
    "chiplet.models.plugin",
    "chiplet.formats.quantization.plugin",
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """An entry point, not yet imported.

    Attributes:
        name: of the entry point; one of a distribution has not the name of another.
        fault: why there is nothing to be imported; empty as a rule.
    """

    distribution: str
    version: str
    module: str
    name: str
    fault: str = ""


def discover(options: DeviceOptions) -> PluginSet:
    """All plugins that the options allow, told their own options.

    Whoever asks for them tells them the end, with `PluginSet.shut_down`.

    Raises:
        ConfigError: an option for a plugin cannot be read.
        PluginError: a plugin named by `--plugins` or `--plugin-option` is not installed, is left
            out, has no such option or cannot be loaded.
    """
    allowed = frozenset(map(normalized, options.plugins))
    denied = frozenset(map(normalized, options.no_plugin))
    given = read_options(options.plugin_option)
    found = list(installed_candidates())
    _check_names(allowed | denied | given.keys(), found)
    wanted = [Candidate(CORE_DISTRIBUTION, __version__, each, each) for each in CORE_MODULES]
    blocked: list[Candidate] = []
    for candidate in found:
        name = normalized(candidate.distribution)
        is_wanted = name not in denied and (not allowed or name in allowed)
        (wanted if is_wanted else blocked).append(candidate)
    for name in given.keys() & {normalized(each.distribution) for each in blocked}:
        raise PluginError(
            f"Plugin '{name}' is given an option and left out.",
            remedy="Drop the option, or change --plugins or --no-plugin.",
        )
    explicit = frozenset(allowed | given.keys())
    results = _load_all(wanted, given, explicit | {CORE_DISTRIBUTION})
    return PluginSet(
        _loaded(results),
        tuple(each for each in results if isinstance(each, Quarantined)),
        tuple(candidate.distribution for candidate in blocked),
        explicit,
    )


def installed_candidates() -> Iterator[Candidate]:
    """Entry points of the plugin group, by distribution; the first found of a name wins."""
    found: dict[str, list[Candidate]] = {}
    for distribution in _plugin_distributions():
        entry_points = _entry_points(distribution)
        found.setdefault(normalized(entry_points[0].distribution), entry_points)
    for _, entry_points in sorted(found.items()):
        yield from entry_points


def _entry_points(distribution: Distribution) -> list[Candidate]:
    """A plugin distribution's entry points, or one that says that its installation is damaged."""
    name = _name_of(distribution)
    try:
        return [
            Candidate(name, distribution.version, each.module, each.name)
            for each in distribution.entry_points.select(group=ENTRY_POINT_GROUP)
        ] or [Candidate(name, distribution.version, "", "", "it names no entry point")]
    # Files of an installation that was cut short hold anything; how the reader fails is its own.
    except Exception as error:
        fault = f"its installation is damaged ({type(error).__name__}: {error})"
        return [Candidate(name, "of an unknown version", "", "", fault)]


def _name_of(distribution: Distribution) -> str:
    """The name that the distribution gives itself, or that of its folder."""
    try:
        name: object = distribution.metadata["Name"]
    except Exception:
        name = None
    folder = _folder_of(distribution)
    return name if isinstance(name, str) and name else folder.name.partition("-")[0] or "unknown"


def _folder_of(distribution: Distribution) -> Path:
    """Where the distribution's own files are; importlib has no public word for it."""
    return Path(str(getattr(distribution, "_path", "")))


def duplicates() -> Mapping[str, Sequence[str]]:
    """Versions of each plugin distribution that is installed more than once, first found first."""
    versions: dict[str, dict[str, str]] = {}
    for distribution in _plugin_distributions():
        if _is_of_source(distribution):
            continue
        # A folder may be on the path twice: that is one installation.
        place = str(distribution.locate_file("").resolve())  # pyright: ignore[reportAttributeAccessIssue]
        name = normalized(_name_of(distribution))
        version = str(_entry_points(distribution)[0].version)
        versions.setdefault(name, {}).setdefault(f"{place} {version}", version)
    return {name: tuple(each.values()) for name, each in versions.items() if len(each) > 1}


def _is_of_source(distribution: Distribution) -> bool:
    """Whether it is what a build left in a folder of sources, as beside every editable install."""
    return distribution.read_text("PKG-INFO") is not None and not distribution.read_text("RECORD")


def _plugin_distributions() -> Iterator[Distribution]:
    for distribution in distributions():
        try:
            text = distribution.read_text("entry_points.txt")
        except UnicodeDecodeError:
            text = (_folder_of(distribution) / "entry_points.txt").read_text("utf-8", "replace")
        # Only files that mention the group are parsed: a damaged one of a stranger is no concern.
        if text is not None and f"[{ENTRY_POINT_GROUP}]" in text:
            yield distribution


def load(candidate: Candidate, host: HostFacts, options: Mapping[str, str]) -> Plugin | Quarantined:
    """The plugin, or why it cannot be loaded; never raises for a fault of the plugin.

    Args:
        candidate: what is loaded.
        host: what core knows of the host.
        options: those of its distribution, of which it may declare some.
    """
    manifest: Manifest | None = None
    try:
        if candidate.fault:
            raise ManifestError(candidate.fault)
        manifest = read_manifest(find_manifest(candidate.module))
        place = Path(normalized(candidate.distribution), candidate.name)
        context = make_context(place, manifest, options, host)
        check_api(manifest)
        check_requires(manifest)
        relay = _register(candidate.module)
        check_hooks(manifest, [name for name in HOOKS if getattr(relay, name).get_hookimpls()])
        configure(relay, context)
    except ManifestError as error:
        reason = str(error)
    except pluggy.PluginValidationError as error:
        reason = f"registration failed: {' '.join(str(error).split())}"
    except FAULTS as error:
        reason = f"import of {candidate.module} raised {type(error).__name__}: {error}"
    else:
        return Plugin(
            candidate.distribution, candidate.version, candidate.module, manifest, relay, context
        )
    return Quarantined(
        candidate.distribution, candidate.version, candidate.module, reason, manifest
    )


def _load_all(
    candidates: Sequence[Candidate],
    options: Mapping[str, Mapping[str, str]],
    needed: frozenset[str],
) -> Sequence[Plugin | Quarantined]:
    """Load one after the other; if that ends the start, those loaded are told the end.

    Args:
        options: by normalized distribution.
        needed: normalized distributions that must load.

    Raises:
        PluginError: one that is needed cannot be loaded, or one has no such option.
    """
    for name, mine in options.items():
        theirs = [each for each in candidates if normalized(each.distribution) == name]
        _check_options(theirs, mine)
    host = host_facts()
    results: list[Plugin | Quarantined] = []
    with ExitStack() as at_failure:
        at_failure.callback(lambda: PluginSet(_loaded(results)).shut_down())
        for each in candidates:
            result = load(each, host, options.get(normalized(each.distribution), {}))
            if isinstance(result, Quarantined) and normalized(result.distribution) in needed:
                raise PluginError(
                    f"Plugin {result.distribution} {result.version} cannot be used: "
                    f"{result.reason}.",
                    remedy=f"Update or reinstall {result.distribution}.",
                )
            results.append(result)
        at_failure.pop_all()
    return results


def _check_options(candidates: Sequence[Candidate], options: Mapping[str, str]) -> None:
    """Refuse an option that no plugin of a distribution declares."""
    try:
        manifests = [read_manifest(find_manifest(each.module)) for each in candidates]
    except FAULTS:
        return  # Loading says what is wrong, and ends the start.
    check_options(candidates[0].distribution, manifests, options)


def _loaded(results: Sequence[Plugin | Quarantined]) -> tuple[Plugin, ...]:
    return tuple(each for each in results if isinstance(each, Plugin))


def _register(module: str) -> pluggy.HookRelay:
    """Hooks of a module in a plugin manager of its own; a failure leaves nothing behind."""
    manager = pluggy.PluginManager("chiplet")
    manager.add_hookspecs(hooks)
    manager.register(import_module(module), name=module)
    manager.check_pending()
    return manager.hook


def _check_names(names: frozenset[str], found: list[Candidate]) -> None:
    installed = {normalized(candidate.distribution) for candidate in found}
    listed = ", ".join(sorted(installed)) or "none"
    for name in sorted(names - installed):
        raise PluginError(
            f"Plugin '{name}' is not installed; installed: {listed}.",
            remedy=f"Install it with 'pip install {name}', or correct the name.",
        )
