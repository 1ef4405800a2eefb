"""Rules of the house that no other tool checks."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from chiplet.api import Op

ROOT = Path(__file__).parents[2]
CORE = ROOT / "core" / "src" / "chiplet"
ROOMS = ("core", "plugins", "tests", "examples", "benchmarks", "docs")

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60
MAX_PUBLIC_METHODS = 12

VENDOR_WORDS = re.compile(
    r"(?<![a-z])(cuda|rocm|hip|nvidia|amd|npu|tpu|xla|xpu|ascend|mps|flashinfer|aiter|triton|nccl"
    r"|hccl|cudnn|cublas|musa|gaudi|hpu|oneccl)(?![a-z])",
    re.IGNORECASE,
)
UNFINISHED = re.compile(
    r"\b(TO" r"DO|FIX" r"ME|X" r"XX|HA" r"CK|place" r"holder|not implemented" r" yet)\b",
    re.IGNORECASE,
)


def python_files(*rooms: str) -> list[Path]:
    return sorted(
        path
        for room in rooms
        for path in (ROOT / room).rglob("*.py")
        if not {"build", ".venv", "node_modules"} & set(path.relative_to(ROOT).parts)
    )


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def is_test(path: Path) -> bool:
    return "tests" in path.parts


def place(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def imported_modules(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, node.module or ""


def test_files_are_short() -> None:
    long = [
        f"{path.relative_to(ROOT)}: {length} lines"
        for path in python_files(*ROOMS)
        if (length := len(path.read_text("utf-8").splitlines())) > MAX_FILE_LINES
    ]
    assert not long


def test_functions_are_short() -> None:
    long = [
        f"{place(path, node.lineno)} {node.name}: {length} lines"
        for path in python_files(*ROOMS)
        if not is_test(path) and "kernels" not in path.parts
        for node in functions(ast.parse(path.read_text("utf-8")))
        if (length := (node.end_lineno or 0) - node.lineno + 1) > MAX_FUNCTION_LINES
    ]
    assert not long


def test_classes_have_few_public_methods() -> None:
    wide: list[str] = []
    for path in python_files("core", "plugins"):
        if is_test(path):
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef):
                methods = [
                    each.name
                    for each in node.body
                    if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
                    and not each.name.startswith("_")
                    and not any(
                        isinstance(d, ast.Name) and d.id == "property" for d in each.decorator_list
                    )
                ]
                if len(methods) > MAX_PUBLIC_METHODS:
                    wide.append(f"{place(path, node.lineno)} {node.name}: {len(methods)}")
    assert not wide


def test_core_says_no_vendor_word() -> None:
    # Stricter than conditions and names: not in comments, documentation or data files either.
    texts = [
        path
        for path in CORE.rglob("*")
        if path.suffix in {".py", ".toml", ".html", ".jinja", ".js"}
    ]
    said = [
        f"{place(path, number)} '{match[0]}'"
        for path in texts
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        for match in VENDOR_WORDS.finditer(line.replace("_", " "))
    ]
    assert not said
    assert len(texts) > 20


@pytest.mark.parametrize(
    "line", ["if device == 'cuda':", "torch.cuda.is_available()", "is_npu = 1", "import triton"]
)
def test_vendor_words_are_found(line: str) -> None:
    assert VENDOR_WORDS.search(line.replace("_", " "))


@pytest.mark.parametrize("line", ["chip", "temps", "example", "ascending", "relationship"])
def test_ordinary_words_are_not_vendor_words(line: str) -> None:
    assert not VENDOR_WORDS.search(line)


def test_core_imports_no_plugin() -> None:
    plugins = {path.name for path in (ROOT / "plugins").glob("*/src/*") if path.is_dir()}
    assert "chiplet_cpu" in plugins
    wrong = [
        f"{place(path, line)} {module}"
        for path in python_files("core")
        for line, module in imported_modules(ast.parse(path.read_text("utf-8")))
        if module.split(".")[0] in plugins
    ]
    assert not wrong


def test_plugins_and_examples_import_only_the_contract() -> None:
    wrong: list[str] = []
    for path in python_files("plugins"):
        contract = ("chiplet.api", "chiplet.modeling")
        allowed = (*contract, "chiplet.testing") if is_test(path) else contract
        for line, module in imported_modules(ast.parse(path.read_text("utf-8"))):
            is_core = module.split(".")[0] == "chiplet"
            if is_core and not any(
                module == name or module.startswith(f"{name}.") for name in allowed
            ):
                wrong.append(f"{place(path, line)} {module}")
    for path in python_files("examples"):
        for line, module in imported_modules(ast.parse(path.read_text("utf-8"))):
            if module.split(".")[0] == "chiplet" and module not in (
                "chiplet",
                "chiplet.api",
                "chiplet.modeling",
            ):
                wrong.append(f"{place(path, line)} {module}")
    assert not wrong


def test_nothing_is_unfinished() -> None:
    marks = [
        f"{place(path, number)} {line.strip()[:70]}"
        for path in python_files(*ROOMS)
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if UNFINISHED.search(line) or re.search(r"raise NotImplementedError\s*(\(\s*\))?\s*$", line)
    ]
    assert not marks


def test_sources_are_ascii() -> None:
    # Tests may hold other letters where they test text.
    wrong = [
        place(path, number)
        for path in python_files("core", "plugins", "examples", "benchmarks")
        if not is_test(path)
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if not line.isascii()
    ]
    assert not wrong


def test_every_test_asserts_and_none_is_switched_off() -> None:
    proof = re.compile(r"\bassert|raises\(|check|verify|expect|warns\(")
    empty: list[str] = []
    for path in python_files("tests", "plugins"):
        if not is_test(path):
            continue
        for node in functions(ast.parse(path.read_text("utf-8"))):
            if node.name.startswith("test_"):
                decorators = " ".join(ast.unparse(each) for each in node.decorator_list)
                if not proof.search(ast.unparse(node)) or re.search(r"skip|xfail", decorators):
                    empty.append(f"{place(path, node.lineno)} {node.name}")
    assert not empty


def test_test_files_have_names_of_their_own() -> None:
    names = Counter(
        path.name
        for path in python_files("tests", "plugins")
        if is_test(path) and path.name.startswith("test_")
    )
    assert [name for name, number in names.items() if number > 1] == []


def test_core_reads_no_environment_variables() -> None:
    """One place hands all of them on to a child, with others beside them."""
    read = [
        place(path, node.lineno)
        for path in python_files("core")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")
    ]
    assert [each.partition(":")[0] for each in read] == ["core/src/chiplet/server/processes.py"]


@pytest.mark.parametrize("op", list(Op))
def test_every_operation_has_a_reference(op: Op) -> None:
    from chiplet.api import Dtype, OpRequest, Yes
    from chiplet.reference.ops import ReferenceOps

    assert isinstance(ReferenceOps().assess(OpRequest(op=op, dtype=Dtype.FLOAT32)), Yes)
