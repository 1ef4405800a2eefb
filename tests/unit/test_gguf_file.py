"""GGUF headers: read whole, or refused with the reason; never a crash."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chiplet.errors import ModelError
from chiplet.formats.gguf_file import is_gguf, read_gguf


def _write(path: Path) -> Path:
    writer = GGUFWriter(path, "llama")
    writer.add_uint32("a.uint32", 7)
    writer.add_int64("a.int64", -(2**40))
    writer.add_float32("a.float", 0.5)
    writer.add_bool("a.flag", True)
    writer.add_string("a.text", "na\u00efve \u4f60")
    writer.add_array("a.texts", ["x", "", "\u0120the"])
    writer.add_array("a.numbers", [1, -2, 3])
    writer.add_tensor("first", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.add_tensor("second", np.ones(5, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return _write(tmp_path_factory.mktemp("gguf") / "m.gguf").read_bytes()


def test_facts_and_tensors(tmp_path: Path) -> None:
    file = read_gguf(_write(tmp_path / "m.gguf"))
    assert file.version == 3
    assert file.text("general.architecture") == "llama"
    assert file.integer("a.uint32") == 7
    assert file.integer("a.int64") == -(2**40)
    assert file.number("a.float") == 0.5
    assert file.number("a.uint32") == 7.0
    assert file.flag("a.flag", False) is True
    assert file.text("a.text") == "na\u00efve \u4f60"
    assert file.texts("a.texts") == ["x", "", "\u0120the"]
    assert file.numbers("a.numbers").tolist() == [1, -2, 3]
    first, second = file.tensors
    assert (first.name, first.shape, first.type.name) == ("first", (2, 3), "F32")
    assert (second.shape, second.size_bytes) == ((5,), 10)
    values = np.fromfile(file.path, np.float32, 6, offset=first.offset_bytes)
    assert values.tolist() == [0, 1, 2, 3, 4, 5]


def test_absent_keys_and_wrong_types(tmp_path: Path) -> None:
    file = read_gguf(_write(tmp_path / "m.gguf"))
    assert file.text("b") is None
    assert file.integer("b") is None
    assert file.texts("b") == []
    assert len(file.numbers("b")) == 0
    assert file.flag("b", True) is True
    with pytest.raises(ModelError, match=r"a\.text .*expected an integer"):
        file.integer("a.text")
    with pytest.raises(ModelError, match=r"a\.flag .*expected an integer"):
        file.integer("a.flag")


def test_a_file_is_known_by_its_name_or_its_beginning(tmp_path: Path) -> None:
    path = _write(tmp_path / "named-otherwise")
    (tmp_path / "x.gguf").write_bytes(b"")
    (tmp_path / "y.txt").write_bytes(b"hello")
    assert is_gguf(path)
    assert is_gguf(tmp_path / "x.gguf")
    assert not is_gguf(tmp_path / "y.txt")
    assert not is_gguf(tmp_path)


def test_every_truncation_is_refused(sound: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    # The last tensor is padded at its end, so the last bytes may be missing.
    padding = 32 - 10
    for length in range(len(sound) - padding):
        path.write_bytes(sound[:length])
        with pytest.raises(ModelError):
            read_gguf(path)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_is_refused_or_harmless(sound: bytes, tmp_path: Path, data: st.DataObject) -> None:
    damaged = bytearray(sound)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(sound) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.gguf"
    path.write_bytes(damaged)
    with contextlib.suppress(ModelError):  # and nothing else
        read_gguf(path)


@pytest.mark.parametrize(
    ("beginning", "said"),
    [
        (b"PK\x03\x04" + bytes(20), "not a GGUF file"),
        (b"GGUF" + (1).to_bytes(4, "little") + bytes(20), "version 1"),
        (b"GGUF" + (3).to_bytes(4, "big") + bytes(20), "big-endian"),
        (b"", "cut short"),
        (b"GGUF" + (3).to_bytes(4, "little") + (2**63).to_bytes(8, "little") * 2, "cut short"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, beginning: bytes, said: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(beginning)
    with pytest.raises(ModelError, match=said):
        read_gguf(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="No such file"):
        read_gguf(tmp_path / "m.gguf")


def test_an_unreadable_type_names_the_readable_ones(sound: bytes, tmp_path: Path) -> None:
    at = sound.index(b"second") + len(b"second") + 4 + 8
    damaged = sound[:at] + (10).to_bytes(4, "little") + sound[at + 4 :]
    path = tmp_path / "m.gguf"
    path.write_bytes(damaged)
    tensor = read_gguf(path).tensors[1]
    with pytest.raises(ModelError, match=r"second is of type Q2_K; supported: F32, .*Q6_K"):
        _ = tensor.type
