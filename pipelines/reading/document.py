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
MERGE = "tag:yaml.org,2002:merge"
MOST_BYTES, MOST_LEVELS, MOST_VALUES, MOST_INCLUDES = 4_000_000, 100, 200_000, 100
MOST_CHARACTERS, LARGEST_NUMBER = 20_000_000, 10**100
"""Limits of what is read: of a file, of its nesting, of values once aliases are copied, of files
that are included, and of the text that variables are replaced in."""


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
    """Reads one file. Raises `SpecError` for bad YAML, bad UTF-8, a key written twice, and what is
    too large, too deep or refers to itself."""
    shown = shown or str(path)
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        text = data.decode("utf-8")
    except (OSError, ValueError) as error:
        if isinstance(error, UnicodeDecodeError):
            line = data[: error.start].count(b"\n") + 1
            raise SpecError([Problem(Place(shown, line), "is not UTF-8 text")]) from error
        what = error.strerror if isinstance(error, OSError) else str(error)
        raise SpecError([Problem(Place(shown), f"cannot be read: {what}")]) from error
    if len(data) > MOST_BYTES:
        raise SpecError(
            [Problem(Place(shown), f"has more than {MOST_BYTES:,} bytes; is it a pipeline file?")]
        )
    return parse(text, shown)


def parse(text: str, shown: str) -> Node:
    """Text as a tree; raises as `read`."""
    try:
        root, reader = _composed(text, shown)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = Place(shown, mark.line + 1 if mark else None)
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        line = text.splitlines()[mark.line] if mark and mark.line < text.count("\n") else ""
        hint = "; inside {…} write ${…} in quotes" if "${" in line else ""
        raise SpecError([Problem(place, f"is not valid YAML: {what}{hint}")]) from error
    if reader.problems:
        raise SpecError(reader.problems)
    return root


def _composed(text: str, shown: str) -> tuple[Node, _Reader]:
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            raise SpecError([Problem(Place(shown, 1), "is empty")])
        reader = _Reader(loader, shown)
        return reader.node(root), reader
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    """PyYAML's, which calls itself for everything that is nested: so nesting has a limit."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MOST_LEVELS:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            what = f"more than {MOST_LEVELS} levels are nested"
            raise yaml.composer.ComposerError(None, None, what, mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Reader:
    """Turns PyYAML's nodes into ours. An alias is a copy of what it stands for, so that each can be
    overridden alone; so their number has a limit, and none may contain itself."""

    def __init__(self, loader: yaml.SafeLoader, shown: str) -> None:
        self.loader, self.shown = loader, shown
        self.problems: list[Problem] = []
        self.values = 0
        self.inside: set[int] = set()

    def place(self, node: yaml.Node) -> Place:
        return Place(self.shown, node.start_mark.line + 1)

    def node(self, node: yaml.Node) -> Node:
        self.values += 1
        if self.values > MOST_VALUES:
            what = f"aliases stand for more than {MOST_VALUES:,} values"
            raise SpecError([Problem(self.place(node), what)])
        if id(node) in self.inside:
            raise SpecError([Problem(self.place(node), "an anchor contains its own alias")])
        self.inside.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return Node(self.mapping(node), self.place(node))
            if isinstance(node, yaml.SequenceNode):
                return Node([self.node(item) for item in node.value], self.place(node))
            return Node(self.scalar(node), self.place(node))
        finally:
            self.inside.discard(id(node))

    def scalar(self, node: yaml.Node) -> Any:
        try:
            value = self.loader.construct_object(node, deep=True)
            if isinstance(value, int) and abs(value) > LARGEST_NUMBER:
                raise ValueError("a number of so many digits")
            return value
        except (ValueError, OverflowError) as error:  # no such date, no such number
            shown = str(node.value)[:40]
            self.problems.append(Problem(self.place(node), f"{shown!r} is no value: {error}"))
            return None

    def mapping(self, node: yaml.MappingNode) -> dict[Any, Node]:
        mapping: dict[Any, Node] = {}
        merged: dict[Any, Node] = {}
        for key_node, value_node in node.value:
            place = self.place(key_node)
            if key_node.tag == MERGE:
                for name, value in self.merged(value_node).items():
                    merged.setdefault(name, value)
                continue
            key = self.scalar(key_node) if isinstance(key_node, yaml.ScalarNode) else []
            if isinstance(key, (dict, list, set)):
                self.problems.append(Problem(place, "a key must be a plain value"))
                continue
            if key in mapping:
                first = mapping[key].place.line
                what = f"{key!r} is written twice, first at line {first}"
                self.problems.append(Problem(place, what))
            # The key's line is where a person looks, even if the value starts further down.
            mapping[key] = Node(self.node(value_node).value, place)
        return {**merged, **mapping}

    def merged(self, node: yaml.Node) -> dict[Any, Node]:
        """What `<<:` brings in: a mapping, or the first of several that has a key."""
        read = self.node(node)
        parts = read.value if isinstance(read.value, list) else [read]
        found: dict[Any, Node] = {}
        for part in parts:
            if not isinstance(part.value, dict):
                self.problems.append(
                    Problem(self.place(node), "<<: takes a mapping, or a list of them")
                )
                continue
            for name, value in part.value.items():
                found.setdefault(name, value)
        return found


def resolve_includes(root: Node, base: Path, seen: tuple[Path, ...]) -> Node:
    """Merges the files under `include:` into the file that names them, whose values win."""
    return _Includes().resolve(root, base, seen)


class _Includes:
    """Includes of includes; they may not double at every level, so their number has a limit."""

    def __init__(self) -> None:
        self.files = 0

    def resolve(self, root: Node, base: Path, seen: tuple[Path, ...]) -> Node:
        if not isinstance(root.value, dict) or "include" not in root.value:
            return root
        named = root.value.pop("include")
        files = named.plain() if isinstance(named.value, list) else [named.plain()]
        merged = Node({}, root.place)
        for file in files:
            merged = merge(merged, self.included(file, named.place, root, base, seen))
        return merge(merged, root)

    def included(
        self, file: Any, place: Place, root: Node, base: Path, seen: tuple[Path, ...]
    ) -> Node:
        self.files += 1
        if self.files > MOST_INCLUDES:
            raise SpecError([Problem(place, f"more than {MOST_INCLUDES} files are included")])
        if not isinstance(file, str):
            raise SpecError([Problem(place, "include: takes a file name or a list of them")])
        try:
            path = (base / file).resolve()
            exists = path.is_file()
        except (OSError, ValueError, RuntimeError) as error:  # too long, NUL, links in a circle
            what = error.strerror if isinstance(error, OSError) else str(error)
            raise SpecError([Problem(place, f"included file {file[:80]!r}: {what}")]) from error
        if path in seen:
            raise SpecError([Problem(place, f"{file} includes itself, directly or through others")])
        if not exists:
            raise SpecError([Problem(place, f"included file {file} does not exist")])
        shown = str(Path(root.place.file).parent / file)
        tree = read(path, shown)
        if not isinstance(tree.value, dict):
            raise SpecError([Problem(tree.place, f"{file} is included, so it must be a mapping")])
        return self.resolve(tree, path.parent, (*seen, path))


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
    lengths = {name: len(str(value)) for name, value in known.items()}
    problems: list[Problem] = []
    size = 0

    def counted(amount: int, place: Place) -> None:
        nonlocal size
        size += amount
        if size > MOST_CHARACTERS:
            what = f"with its variables, the file has more than {MOST_CHARACTERS:,} characters"
            raise SpecError([*problems, Problem(place, what)])

    def lookup(name: str, place: Place) -> Any:
        if name not in known:
            problems.append(
                Problem(place, f"unknown variable ${{{name}}}{did_you_mean(name, known)}")
            )
        counted(lengths.get(name, 0), place)
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
    if path == "include":
        raise SpecError([Problem(place, "include: can only be written in a file")])
    try:
        value = parse_plain(parse(text, str(place)).plain() if text.strip() else None, place)
    except SpecError as error:
        what = error.problems[0].message
        raise SpecError([Problem(place, f"{text[:80]!r} is not a YAML value: {what}")]) from error
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
