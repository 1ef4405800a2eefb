"""What a plugin's source may do: import the contract, and assign into nothing of Chiplet's."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from chiplet.testing.conformance.case import Case, Subject

_CONTRACT = ("chiplet.api", "chiplet.modeling")


def package_cases() -> Iterator[Case]:
    """All cases; a subject's target is the folder of a plugin's package."""

    def imports(subject: Subject) -> None:
        found = [each for path in sources(subject.target) for each in foreign_imports(path)]
        assert not found, (
            f"imports more of Chiplet than {' and '.join(_CONTRACT)}: {'; '.join(found)}"
        )

    def patches(subject: Subject) -> None:
        found = [each for path in sources(subject.target) for each in assignments(path)]
        assert not found, f"assigns into Chiplet: {'; '.join(found)}"

    for name, check in (("imports only chiplet.api", imports), ("patches nothing", patches)):
        yield Case(family="package", operation="package", name=name, is_quick=True, check=check)


def sources(folder: Path) -> list[Path]:
    """Python files of a package.

    Raises:
        AssertionError: there are none, so that nothing was looked at.
    """
    found = sorted(folder.rglob("*.py"))
    assert found, f"no source in {folder}"
    return found


def foreign_imports(path: Path) -> Iterator[str]:
    """Imports of another module of Chiplet than the contract, hidden ones included."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        for module in _imported(node):
            is_core = module.partition(".")[0] == "chiplet"
            if is_core and not f"{module}.".startswith(tuple(f"{each}." for each in _CONTRACT)):
                yield f"{path.name}:{getattr(node, 'lineno', 0)} {module}"


def assignments(path: Path) -> Iterator[str]:
    """Assignments to attributes of what was imported from Chiplet, by '=' or `setattr`."""
    tree = ast.parse(path.read_text("utf-8"))
    names = set(_bound_names(tree))
    for node in ast.walk(tree):
        for target in _targets(node):
            root = target
            while isinstance(root, ast.Attribute | ast.Subscript):
                root = root.value
            if root is not target and isinstance(root, ast.Name) and root.id in names:
                yield f"{path.name}:{target.lineno} {ast.unparse(target)}"


def _imported(node: ast.AST) -> list[str]:
    match node:
        case ast.Import():
            return [each.name for each in node.names]
        case ast.ImportFrom(module=str(module)):
            if module == "chiplet":  # `from chiplet import api`
                return [f"chiplet.{each.name}" for each in node.names]
            return [module]
        case ast.Call(args=[ast.Constant(value=str(module)), *_]):
            called = ast.unparse(node.func)
            return [module] if called in ("import_module", "importlib.import_module") else []
        case _:
            return []


def _bound_names(tree: ast.AST) -> Iterator[str]:
    """Names in a file that stand for something of Chiplet's."""
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                for each in node.names:
                    if each.name.partition(".")[0] == "chiplet":
                        yield each.asname or "chiplet"
            case ast.ImportFrom(module=str(module)) if module.partition(".")[0] == "chiplet":
                for each in node.names:
                    yield each.asname or each.name
            case _:
                pass


def _targets(node: ast.AST) -> list[ast.expr]:
    match node:
        case ast.Assign():
            return node.targets
        case ast.AugAssign() | ast.AnnAssign():
            return [node.target]
        case ast.Delete():
            return node.targets
        case ast.Call(func=ast.Name(id="setattr" | "delattr"), args=[target, *_]):
            # As if it were `target.x = ...`, so that the root is looked at alike.
            attribute = ast.Attribute(value=target, attr="...", ctx=ast.Store())
            return [ast.copy_location(attribute, node)]
        case _:
            return []
