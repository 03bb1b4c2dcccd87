"""What a stage's result depends on, as one digest and as parts that can be compared."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

from pipelines.contracts.base import Json
from pipelines.contracts.runs import Parts

LABELS = ("CONFIG", "INPUT", "CODE", "LIBRARY")


NOT_HASHED = frozenset({"pipelines.registry", "pipelines.reading.options", "pipelines.version"})
"""Modules that turn names and options into objects: their result is in CONFIG and CODE already,
and a stage must not run again because another one was registered. Also the version, because a
release by itself changes no result."""


def flatten(value: Json, prefix: str = "") -> dict[str, Json]:
    """Nested mappings as one, with keys joined by dots, so that a difference can be named."""
    if isinstance(value, dict) and value:
        flat: dict[str, Json] = {}
        for key, item in value.items():
            flat |= flatten(item, f"{prefix}.{key}" if prefix else str(key))
        return flat
    return {prefix: value}


def library_versions(names: Iterable[str]) -> dict[str, str]:
    """Installed versions of distributions, and of Python. Raises `ValueError` if one is missing."""
    versions = {"python": ".".join(str(part) for part in sys.version_info[:2])}
    for name in names:
        installed = _version(name)
        if installed is None:
            raise ValueError(f"the library {name} is not installed; pip install {name}")
        versions[name] = installed
    return versions


@cache
def _version(name: str) -> str | None:
    # onnxruntime-gpu and onnxruntime are two builds of one library.
    candidates = [name, "onnxruntime-gpu"] if name == "onnxruntime" else [name]
    for candidate in candidates:
        try:
            return importlib.metadata.version(candidate)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def code_hashes(targets: Iterable[str]) -> dict[str, str]:
    """Hashes of the modules behind "module:Name" targets and of all project modules they import.

    The hash is over the syntax tree without docstrings: comments, layout and documentation do not
    change it. Project modules share a top-level package, or a folder, with a target or with this
    package; of what they import from elsewhere, only the version counts (`libraries`).
    """
    pending = [target.partition(":")[0] for target in targets]
    roots = {module.partition(".")[0] for module in pending} | {
        "pipelines",
        "stages",
        "model",
        "exports",
    }
    hashes: dict[str, str] = {}
    while pending:
        module = pending.pop()
        if module in hashes:
            continue
        path = _source(module)
        if path is None:
            raise ValueError(
                f"the source of module {module} cannot be found, so it cannot be hashed"
            )
        hashed, imported = _parse(path, module)
        hashes[module] = hashed
        parents = {module.rpartition(".")[0]} - {""}
        for name in imported | parents:
            ours = name.partition(".")[0] in roots and name not in NOT_HASHED
            if ours and _source(name) is not None:
                pending.append(name)
    return {_shown(name): hashed for name, hashed in sorted(hashes.items())}


def _shown(module: str) -> str:
    """The path of the module's file as a person would write it."""
    path = _source(module)
    tail = "/__init__.py" if path is not None and path.name == "__init__.py" else ".py"
    return module.replace(".", "/") + tail


@cache
def _source(module: str) -> Path | None:
    """The file of a module, found without importing anything: parents can be slow to import."""
    top, *inner = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or (spec.origin is None and not spec.submodule_search_locations):
        return None
    if not inner and spec.origin is not None:
        return Path(spec.origin) if spec.origin.endswith(".py") else None
    for folder in spec.submodule_search_locations or ():
        base = Path(folder, *inner)
        for path in (base / "__init__.py", base.with_suffix(".py")):
            if path.is_file():
                return path
    return None


@cache
def _parse(path: Path, module: str) -> tuple[str, frozenset[str]]:
    tree = ast.parse(path.read_bytes(), filename=str(path))
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    imported: set[str] = set()
    for node in _walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                pieces = alias.name.split(".")
                imported |= {".".join(pieces[: n + 1]) for n in range(len(pieces))}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            imported |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body[0] = ast.Expr(ast.Constant(""))
    return hashlib.sha256(ast.dump(tree).encode("utf-8")).hexdigest(), frozenset(imported)


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """`ast.walk` without the blocks under `if TYPE_CHECKING:`, which never run."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            continue
        yield from _walk(child)


def differences(before: Parts, after: Parts) -> list[str]:
    """One text for each change, such as `CONFIG steps: 1000 → 200` and `CODE stages/train.py`."""
    changes = []
    for label in LABELS:
        old, new = before.get(label, {}), after.get(label, {})
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                changes.append(f"{label} {_change(label, key, old, new)}")
    return changes


def _change(label: str, key: str, old: Mapping[str, Json], new: Mapping[str, Json]) -> str:
    if label in ("CONFIG", "LIBRARY"):
        before = json.dumps(old[key], ensure_ascii=False) if key in old else "unset"
        after = json.dumps(new[key], ensure_ascii=False) if key in new else "unset"
        return f"{key}: {before} → {after}"
    if key not in old:
        return f"{key} (new)"
    if key not in new:
        return f"{key} (gone)"
    return key
