"""A digest is remembered only as long as its file is certainly the same."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from pathlib import Path

import fsspec
import pytest

from pipelines.store import remembered
from pipelines.store.remembered import Memory
from pipelines.store.sources import NamedFiles, SourceFile, content_digest


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The URLs of the files that were read."""
    urls: list[str] = []
    read = content_digest

    def counted(url: str) -> str:
        urls.append(url)
        return read(url)

    monkeypatch.setattr(remembered, "content_digest", counted)
    return urls


@pytest.fixture
def settled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is older than the resolution of clocks."""
    path = tmp_path / "a.tsv"
    path.write_text("a\tb\n")
    monkeypatch.setattr(remembered, "GRAIN", 0.01)
    time.sleep(0.05)
    return path


def test_a_file_is_read_once(tmp_path: Path, settled: Path, reads: list[str]) -> None:
    for _ in range(3):  # as three processes would
        assert Memory(tmp_path / "store").digest(str(settled)) == sha256("a\tb\n")
    assert reads == [str(settled)]


def test_a_changed_file_is_read_again(tmp_path: Path, settled: Path, reads: list[str]) -> None:
    memory = Memory(tmp_path / "store")
    memory.digest(str(settled))
    before = settled.stat()
    settled.write_text("c\td\n")  # the same size; the next line sets the same time
    os.utime(settled, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert memory.digest(str(settled)) == sha256("c\td\n")
    other = tmp_path / "b.tsv"
    other.write_text("e\tf\n")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(settled)  # another inode
    assert memory.digest(str(settled)) == sha256("e\tf\n")
    assert len(reads) == 3


def test_what_is_younger_than_the_clocks_grain_is_not_remembered(
    tmp_path: Path, reads: list[str]
) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("young")
    memory = Memory(tmp_path / "store")
    assert memory.digest(str(path)) == memory.digest(str(path)) == sha256("young")
    assert len(reads) == 2


def test_a_damaged_memory_begins_anew(tmp_path: Path, settled: Path, reads: list[str]) -> None:
    memory = Memory(tmp_path / "store")
    memory.path.parent.mkdir()
    memory.path.write_bytes(b"no database at all" * 1000)
    for _ in range(3):
        assert memory.digest(str(settled)) == sha256("a\tb\n")
    assert len(reads) <= 2


def test_tables_are_not_parsed_for_the_files_that_they_name(
    tmp_path: Path, settled: Path, reads: list[str]
) -> None:
    picture = tmp_path / "a.png"
    picture.write_text("picture")
    time.sleep(0.05)
    parsed: list[int] = []

    def find() -> list[SourceFile]:
        parsed.append(1)
        names = ("a.png", "lost.png", "large.png")
        return [SourceFile(name, str(tmp_path / name)) for name in names]

    with (tmp_path / "large.png").open("wb") as sparse:
        sparse.truncate(3_000_000_000)

    def ask(options: str, code: str) -> dict[str, str]:
        files = NamedFiles([SourceFile("a.tsv", str(settled))], options, find, 1000)
        return dict(Memory(tmp_path / "store").digests([("media", files)], code))

    expected = {
        "media a.png": sha256("picture"), "media lost.png": "missing",
        "media large.png": "more than 1000 bytes",
    }  # fmt: skip
    assert ask("x", "1") == ask("x", "1") == expected
    assert len(parsed) == 1 and len(reads) == 2
    assert ask("y", "1") == ask("x", "2") == expected
    assert len(parsed) == 3, "other options and other code may name other files"
    settled.write_text("another table")
    assert ask("x", "1") == expected
    assert len(parsed) == 4


def test_where_a_store_says_nothing_of_changes_files_are_read(
    tmp_path: Path, reads: list[str]
) -> None:
    with fsspec.open("memory://remembered/a.tsv", "wb") as file:
        file.write(b"x")
    memory = Memory(tmp_path / "store")
    assert memory.digest("memory://remembered/a.tsv") == sha256("x")
    with fsspec.open("memory://remembered/a.tsv", "wb") as file:
        file.write(b"y")
    assert memory.digest("memory://remembered/a.tsv") == sha256("y")
    assert len(reads) == 2


@pytest.mark.parametrize(
    "hindrance", ["cannot be written", pytest.param("is locked", marks=pytest.mark.long)]
)
def test_asked_for_again_a_file_is_read_whatever_is_remembered(
    tmp_path: Path, settled: Path, hindrance: str
) -> None:
    """`verify` must see damage also where it may not write."""
    memory = Memory(tmp_path / "store")
    memory.digest(str(settled))
    assert memory.digest(str(settled)) == sha256("a\tb\n")
    memory.remember(str(settled), "0" * 64, str(settled))  # as if its bytes had rotted since
    assert memory.digest(str(settled)) == "0" * 64
    other = sqlite3.connect(memory.path)
    if hindrance == "is locked":
        other.execute("begin exclusive")
    else:
        other.execute(
            "create trigger t before insert on files begin select raise(abort, 'no'); end"
        )
        other.commit()
    started = time.monotonic()
    reader = Memory(tmp_path / "store")
    for _ in range(3):
        assert reader.digest(str(settled), again=True) == sha256("a\tb\n")
    assert time.monotonic() - started < 25  # it waits for the lock once, not for each file
    other.close()


@pytest.mark.parametrize("text", ["[[1", '[["a"]]', "5", "null", '{"a": 1}', '"ab"'])
def test_named_files_that_cannot_be_understood_are_found_again(tmp_path: Path, text: str) -> None:
    table = SourceFile("t.tsv", str(tmp_path / "t.tsv"))
    (tmp_path / "t.tsv").write_text("x")
    files = NamedFiles([table], "", lambda: [SourceFile("p", "p.png")], 10)
    memory = Memory(tmp_path / "store")
    assert [file.shown for file in memory.named(files, "")] == ["p"]
    with sqlite3.connect(memory.path) as connection:
        connection.execute("update named set urls = ?", [text])
    assert [file.shown for file in Memory(tmp_path / "store").named(files, "")] == ["p"]
