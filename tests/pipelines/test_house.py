"""The structure is as in docs/architecture.md: allowed imports, no cycles, no crowded folders."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.planning.fingerprint import code_hashes
from pipelines.reading.order import find_cycle
from pipelines.registry import BUILT_IN

PACKAGES = ("pipelines", "stages", "model", "exports")
CROWDED = 14
"""Maximum number of modules in a folder, including `__init__.py`."""
ROW = re.compile(r"^\| `([\w/]+)` \| [^|]+ \| ([^|]+) \|$", re.MULTILINE)


def modules(root: Path) -> dict[str, Path]:
    """Every module of the project and its file."""
    files = sorted(path for package in PACKAGES for path in (root / package).rglob("*.py"))
    names = (".".join(path.relative_to(root).with_suffix("").parts) for path in files)
    return dict(zip((name.removesuffix(".__init__") for name in names), files, strict=True))


def imported(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The modules that a file imports, also inside functions, except for type checking alone."""

    def walk(node: ast.AST) -> Iterator[ast.AST]:
        yield node
        for child in ast.iter_child_nodes(node):
            if not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
                yield from walk(child)

    for node in walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        yield from (name for name in names if name in known and known[name] != path)


@pytest.fixture(scope="module")
def graph(root: Path) -> dict[str, list[str]]:
    """Imports of each module, without packages, which only describe their contents."""
    known = modules(root)
    plain = {name: path for name, path in known.items() if path.name != "__init__.py"}
    return {name: sorted(set(imported(path, known)) & plain.keys()) for name, path in plain.items()}


def wing(module: str) -> str:
    """The folder or file of a module, two levels deep."""
    return "/".join(module.split(".")[:2])


def test_no_file_is_in_a_circle_of_imports(graph: dict[str, list[str]]) -> None:
    assert find_cycle(graph) is None


def test_every_wing_imports_what_the_table_allows(root: Path, graph: dict[str, list[str]]) -> None:
    text = (root / "docs" / "architecture.md").read_text(encoding="utf-8")
    allowed = {name: set(re.findall(r"`([\w/]+)`", cell)) for name, cell in ROW.findall(text)}
    assert set(allowed) == {wing(module) for module in graph}
    imports: dict[str, set[str]] = {name: set() for name in allowed}
    for module, others in graph.items():
        imports[wing(module)] |= {wing(other) for other in others} - {wing(module)}
    assert {name: sorted(others - allowed[name]) for name, others in imports.items()} == {
        name: [] for name in imports
    }
    assert {name: sorted(allowed[name] - others) for name, others in imports.items()} == {
        name: [] for name in imports
    }, "the table allows imports that no module needs"
    above: set[str] = set()
    for name, permitted in allowed.items():  # a wing imports only wings above it
        assert permitted <= above, name
        above.add(name)


def test_no_folder_is_crowded(root: Path) -> None:
    folders = [path.parent for path in modules(root).values()]
    assert {str(f): n for f in folders if (n := folders.count(f)) > CROWDED} == {}


@pytest.mark.parametrize("stage", sorted(BUILT_IN["stages"]))
def test_what_a_stage_depends_on_is_listed(root: Path, stage: str) -> None:
    """A stage runs again if one of these changed. A longer list costs every user, so the diff must
    show it. REWRITE=1 writes the list again."""
    path = root / "tests" / "fingerprints" / f"{stage}.txt"
    listing = "".join(f"{name}\n" for name in code_hashes([BUILT_IN["stages"][stage]]))
    if os.environ.get("REWRITE"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(listing, encoding="utf-8")
    assert listing == path.read_text(encoding="utf-8")


def test_models_know_nothing_of_onnx(root: Path) -> None:
    for path in modules(root).values():
        if path.is_relative_to(root / "model"):
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"is_in_onnx_export|torch\.onnx|com\.microsoft", text), path
