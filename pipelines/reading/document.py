"""YAML as a tree that remembers where each value was written.

Includes, variables and `--set` work on this tree, so that an error found much later still names
the file and line that the user must change. It knows nothing about stages.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipelines.registry import did_you_mean

VARIABLE = re.compile(r"\$\{([A-Za-z_][\w.-]*)\}")


@dataclass(frozen=True)
class Place:
    """Where something was written: a file and line, or a command-line option."""

    file: str
    line: int | None = None

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(frozen=True)
class Problem:
    place: Place
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


class SpecError(Exception):
    """The pipeline file is wrong; `problems` lists everything that was found."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


@dataclass
class Node:
    """A YAML value. `value` is a dict of nodes, a list of nodes, or a plain scalar."""

    value: Any
    place: Place

    def plain(self) -> Any:
        """The value without places."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def at(self, path: tuple[Any, ...]) -> Place:
        """The place of the value at a path, or of the nearest parent that exists."""
        node = self
        for key in path:
            if isinstance(node.value, dict):
                below = node.value.get(key)
            else:
                inside = isinstance(node.value, list) and isinstance(key, int)
                below = node.value[key] if inside and key < len(node.value) else None
            if below is None:
                break
            node = below
        return node.place


def read(path: Path, shown: str | None = None) -> Node:
    """Reads one file. Raises `SpecError` for bad YAML, bad UTF-8 or a key written twice."""
    shown = shown or str(path)
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise SpecError([Problem(Place(shown), f"cannot be read: {error.strerror}")]) from error
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise SpecError([Problem(Place(shown, line), "is not UTF-8 text")]) from error
    return parse(text, shown)


def parse(text: str, shown: str) -> Node:
    problems: list[Problem] = []
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            raise SpecError([Problem(Place(shown, 1), "is empty")])
        tree = _convert(loader, root, shown, problems)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = Place(shown, mark.line + 1 if mark else None)
        what = getattr(error, "problem", None) or str(error)
        line = text.splitlines()[mark.line] if mark and mark.line < text.count("\n") else ""
        hint = "; inside {…} write ${…} in quotes" if "${" in line else ""
        raise SpecError([Problem(place, f"is not valid YAML: {what}{hint}")]) from error
    finally:
        loader.dispose()
    if problems:
        raise SpecError(problems)
    return tree


def _convert(loader: yaml.SafeLoader, node: yaml.Node, shown: str, problems: list[Problem]) -> Node:
    place = Place(shown, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        loader.flatten_mapping(node)
        mapping: dict[Any, Node] = {}
        for key_node, value_node in node.value:
            key = loader.construct_object(key_node, deep=True)
            key_place = Place(shown, key_node.start_mark.line + 1)
            if isinstance(key, (dict, list)):
                problems.append(Problem(key_place, "a key must be a plain value"))
                continue
            if key in mapping:
                first = mapping[key].place.line
                problems.append(
                    Problem(key_place, f"{key!r} is written twice, first at line {first}")
                )
            converted = _convert(loader, value_node, shown, problems)
            # The key's line is where a person looks, even if the value starts further down.
            mapping[key] = Node(converted.value, key_place)
        return Node(mapping, place)
    if isinstance(node, yaml.SequenceNode):
        return Node([_convert(loader, item, shown, problems) for item in node.value], place)
    return Node(loader.construct_object(node, deep=True), place)


def resolve_includes(root: Node, base: Path, seen: tuple[Path, ...]) -> Node:
    """Merges the files under `include:` into the file that names them, whose values win."""
    if not isinstance(root.value, dict) or "include" not in root.value:
        return root
    named = root.value.pop("include")
    files = named.plain() if isinstance(named.value, list) else [named.plain()]
    merged = Node({}, root.place)
    for file in files:
        if not isinstance(file, str):
            raise SpecError([Problem(named.place, "include: takes a file name or a list of them")])
        path = (base / file).resolve()
        if path in seen:
            raise SpecError(
                [Problem(named.place, f"{file} includes itself, directly or through others")]
            )
        if not path.is_file():
            raise SpecError([Problem(named.place, f"included file {file} does not exist")])
        shown = str(Path(root.place.file).parent / file)
        included = resolve_includes(read(path, shown), path.parent, (*seen, path))
        merged = merge(merged, included)
    return merge(merged, root)


def merge(under: Node, over: Node) -> Node:
    """Merges mappings key by key; any other value of `under` is replaced by that of `over`."""
    if not (isinstance(under.value, dict) and isinstance(over.value, dict)):
        return over
    value = dict(under.value)
    for key, node in over.value.items():
        value[key] = merge(value[key], node) if key in value else node
    return Node(value, over.place)


def substitute(root: Node) -> Node:
    """Replaces `${name}` by the variables' values. A value of only one variable keeps its type."""
    variables = root.value.get("variables") if isinstance(root.value, dict) else None
    if variables is not None and not isinstance(variables.value, dict):
        raise SpecError(
            [Problem(variables.place, "variables: must be a mapping of names to values")]
        )
    known = {
        str(name): node.plain() for name, node in (variables.value if variables else {}).items()
    }
    problems: list[Problem] = []

    def lookup(name: str, place: Place) -> Any:
        if name not in known:
            problems.append(
                Problem(place, f"unknown variable ${{{name}}}{did_you_mean(name, known)}")
            )
        return known.get(name)

    def walk(node: Node) -> Node:
        value = node.value
        if isinstance(value, dict):
            return Node({key: walk(child) for key, child in value.items()}, node.place)
        if isinstance(value, list):
            return Node([walk(child) for child in value], node.place)
        if isinstance(value, str):
            whole = VARIABLE.fullmatch(value)
            if whole:
                return parse_plain(lookup(whole[1], node.place), node.place)
            replaced = VARIABLE.sub(lambda match: str(lookup(match[1], node.place)), value)
            return Node(replaced, node.place)
        return node

    if not isinstance(root.value, dict):
        return root
    value = {key: node if key == "variables" else walk(node) for key, node in root.value.items()}
    if problems:
        raise SpecError(problems)
    return Node(value, root.place)


def parse_plain(value: Any, place: Place) -> Node:
    """A plain value as a tree in which every node has the place `place`."""
    if isinstance(value, dict):
        return Node({key: parse_plain(item, place) for key, item in value.items()}, place)
    if isinstance(value, list):
        return Node([parse_plain(item, place) for item in value], place)
    return Node(value, place)


def override(root: Node, setting: str, top_level: frozenset[str]) -> None:
    """Applies one `--set PATH=VALUE`; the first name of PATH is a stage or a top-level key."""
    place = Place(f"--set {setting}")
    path, equals, text = setting.partition("=")
    if not equals or not path:
        raise SpecError(
            [Problem(place, "write --set STAGE.OPTION=VALUE, as in --set train.steps=200")]
        )
    try:
        value = parse_plain(yaml.safe_load(text), place)
    except yaml.YAMLError as error:
        raise SpecError([Problem(place, f"{text!r} is not a YAML value")]) from error
    parts = path.split(".")
    stages = root.value.get("stages")
    known = stages.value if stages is not None and isinstance(stages.value, dict) else {}
    if parts[0] not in top_level:
        if parts[0] not in known:
            near = did_you_mean(parts[0], [*known, *top_level])
            raise SpecError([Problem(place, f"there is no stage {parts[0]!r}{near}")])
        parts = ["stages", *parts]
    node = root
    for part in parts[:-1]:
        if part not in node.value:
            node.value[part] = Node({}, place)
        node = node.value[part]
        if not isinstance(node.value, dict):
            raise SpecError([Problem(place, f"{part!r} has no options of its own")])
    node.value[parts[-1]] = value
