"""Manifests: what is accepted, and what is said of the rest."""

import pytest

from chiplet.api import INTERFACE_VERSIONS
from chiplet.plugins.manifest import (
    ManifestError,
    PluginKind,
    check_api,
    check_hooks,
    check_requires,
    find_manifest,
    parse_manifest,
    read_manifest,
    serves,
)

GOOD = {
    "name": "acme",
    "kind": "platform",
    "device_types": ["acme"],
    "requires": ["pluggy>=1"],
    "api": {"platform": ">=1.0,<2"},
}


def test_fields():
    manifest = parse_manifest(GOOD)
    assert manifest.name == "acme"
    assert manifest.kind is PluginKind.PLATFORM
    assert manifest.device_types == ("acme",)
    assert manifest.requires == ("pluggy>=1",)
    check_api(manifest)
    check_requires(manifest)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": ""}, "non-empty string"),
        ({"kind": "gadget"}, "'platform' or 'provider'"),
        ({"device_types": []}, "kind 'platform' needs 'device_types'"),
        ({"device_types": "acme"}, "list of strings"),
        ({"api": {}}, "at least one interface"),
        ({"api": {"platform": "one"}}, "must be a range"),
        ({"api": {"platform": 1}}, "must be a range"),
        ({"requires": ["a b c"]}, "no requirement"),
        ({"colour": "red"}, "unknown field 'colour'"),
    ],
)
def test_malformed(change, message):
    with pytest.raises(ManifestError, match=message):
        parse_manifest(GOOD | change)


def test_a_provider_is_asked_about_the_devices_that_it_names():
    bound = parse_manifest(GOOD | {"kind": "provider"})
    assert serves(bound, "acme")
    assert not serves(bound, "other")
    assert serves(parse_manifest(GOOD | {"kind": "provider", "device_types": []}), "other")
    assert serves(parse_manifest(GOOD), "other")


@pytest.mark.parametrize("field", ["name", "kind", "api"])
def test_missing_field(field):
    with pytest.raises(ManifestError, match=f"'{field}' is missing"):
        parse_manifest({key: value for key, value in GOOD.items() if key != field})


@pytest.mark.parametrize(
    ("api", "message"),
    [
        ({"linear": ">=1.9"}, r"linear >=1\.9, newer than this core has 1\.2; update chiplet"),
        ({"linear": ">=2"}, r"linear >=2, newer than this core has 1\.2; update chiplet"),
        ({"platform": "<1"}, r"platform <1, older than this core has 1\.4; update the plugin"),
        ({"platform": ">1.0,<1.0"}, r"needs interface platform <1.0,>1.0, and this core has 1\.4"),
        ({"telepathy": ">=0.1"}, "'telepathy' is unknown to this core"),
    ],
)
def test_api_out_of_range(api, message, monkeypatch):
    monkeypatch.setitem(INTERFACE_VERSIONS, "linear", (1, 2))
    monkeypatch.setitem(INTERFACE_VERSIONS, "platform", (1, 4))
    with pytest.raises(ManifestError, match=message):
        check_api(parse_manifest(GOOD | {"api": api}))


@pytest.mark.parametrize(
    ("requirement", "message"),
    [("chiplet-nowhere", "not installed"), ("pluggy>=99", "needs pluggy>=99, and 1")],
)
def test_requirements_unmet(requirement, message):
    with pytest.raises(ManifestError, match=message):
        check_requires(parse_manifest(GOOD | {"requires": [requirement]}))


def test_requirement_of_another_system_is_skipped():
    check_requires(parse_manifest(GOOD | {"requires": ["nowhere; sys_platform == 'plan9'"]}))


def test_core_manifests_are_found_without_import():
    manifest = read_manifest(find_manifest("chiplet.reference.plugin"))
    assert manifest.device_types == ("reference",)


def test_unreadable_file(tmp_path):
    path = tmp_path / "chiplet_plugin.toml"
    path.write_text("name = [")
    with pytest.raises(ManifestError, match="cannot be read"):
        read_manifest(path)


def test_no_package():
    with pytest.raises(ManifestError, match="'no_such_package_at_all'"):
        find_manifest("no_such_package_at_all.plugin")


def test_every_interface_whose_hooks_are_implemented_is_named():
    manifest = parse_manifest(GOOD | {"api": {"platform": ">=1.0,<2", "quantization": ">=1.0,<2"}})
    free = ["configure", "shutdown", "doctor", "config_proposals"]
    check_hooks(manifest, ["probe", "platform", "emulated", "stored_formats", *free])
    with pytest.raises(ManifestError, match="'linear' belongs to interface linear, for which"):
        check_hooks(manifest, ["probe", "platform", "linear"])
    with pytest.raises(ManifestError, match="needs hook 'probe', which is not implemented"):
        check_hooks(manifest, ["platform"])
