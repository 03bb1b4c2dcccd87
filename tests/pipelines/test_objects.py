"""Objects, leases and results in an object store, with a server that fails in every way.

The server is moto's, which keeps S3's promises: conditional creation, and that what was written is
read.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipelines.running.attempts import is_transient
from pipelines.store import leases, objects
from pipelines.store.artifacts import Artifact, Store
from pipelines.store.leases import LeaseLostError, LockHeldError, last_of, lease
from pipelines.store.objects import (
    DamagedObjectError,
    Objects,
    ObjectStoreError,
    ObjectStoreUnreachableError,
)
from tests.object_store import BUCKET, KINDS, Faults, ObjectStore, object_store

pytest.importorskip("moto")
s3fs = pytest.importorskip("s3fs")


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStore]:
    with object_store() as made:
        yield made


@pytest.fixture
def there(
    server: ObjectStore, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Objects:
    """Objects below a name of the test's own."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    server.proxy.faults = Faults()
    monkeypatch.setattr(objects, "LONGEST_WAIT", 0.3)
    name = hashlib.sha256(request.node.name.encode()).hexdigest()[:12]
    return Objects(f"s3://{BUCKET}/{name}/runs")


@pytest.fixture
def faults(server: ObjectStore, there: Objects) -> Faults:
    return server.proxy.faults


def test_objects_are_written_and_read(there: Objects, tmp_path: Path) -> None:
    there.put("a/b.txt", b"one")
    there.put("a/b.txt", b"two")
    assert there.get("a/b.txt") == b"two"
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "deep" / "x").write_bytes(b"xx")
    (tmp_path / "in" / ".hidden").write_bytes(b"")
    there.send_folder(tmp_path / "in", "a/in")
    assert there.sizes("a") == {"b.txt": 3, "in/deep/x": 2, "in/.hidden": 0}
    assert there.folders("a") == ["in"] and there.folders("") == ["a"]
    there.fetch_folder("a/in", tmp_path / "out")
    assert (tmp_path / "out" / "deep" / "x").read_bytes() == b"xx"
    with there.opened("a/b.txt") as file:
        file.seek(1)
        assert file.read(1) == b"w"
    there.remove_folder("a/in")
    there.remove(["a/b.txt", "a/never"])
    assert there.sizes("a") == {} and there.folders("") == []
    with pytest.raises(FileNotFoundError):
        there.get("a/b.txt")
    assert there.get_json("a/b.txt") is None


def test_one_of_many_creates(there: Objects) -> None:
    with ThreadPoolExecutor(16) as threads:
        won = list(threads.map(lambda n: there.create("x", f"mine {n}".encode()), range(16)))
    assert sum(won) == 1
    assert there.get("x") == f"mine {won.index(True)}".encode()


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_passes(there: Objects, faults: Faults, kind: str, tmp_path: Path) -> None:
    """Every call, with its first two requests failing; an answer that is lost after the object was
    created is no failure either."""
    data = bytes(range(256)) * 400
    (tmp_path / "f").write_bytes(data)

    def failing() -> None:
        faults.once(kind, lambda asked: True, times=2)

    failing()
    there.put("d", data)
    failing()
    assert there.get("d") == data
    failing()
    assert there.create("c", b"mine")
    failing()
    assert not there.create("c", b"theirs")
    failing()
    there.send(tmp_path / "f", "f")
    failing()
    there.fetch("f", tmp_path / "g", hashlib.sha256(data).hexdigest())
    assert (tmp_path / "g").read_bytes() == data
    failing()
    assert there.sizes("") == {"c": 4, "d": len(data), "f": len(data)}
    failing()
    there.remove(["c", "d"])
    assert there.sizes("") == {"f": len(data)}
    assert sum(faults.made.values()) >= 12
    assert not list(tmp_path.glob(".*"))


def test_a_server_that_goes_between_the_parts(
    there: Objects, faults: Faults, tmp_path: Path
) -> None:
    """A large object is sent in parts: nothing of it is seen before all are there."""
    data = bytes(101 << 20)
    (tmp_path / "large").write_bytes(data)
    seen: list[dict[str, int]] = []

    def choose(asked: object) -> str | None:
        if "partNumber=1" in str(asked) and not seen:
            seen.append({})
            faults.away = True
            threading.Timer(2, back).start()
        return None

    def back() -> None:
        faults.away = False
        seen.append(there.sizes(""))

    faults.choose = choose
    there.send(tmp_path / "large", "large")
    assert seen[:2] == [{}, {}], "not there while parts are missing"
    assert there.sizes("") == {"large": len(data)}


def test_a_store_that_stays_away_is_said(
    there: Objects, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "PATIENCE", 1.0)
    monkeypatch.setattr(objects, "LESS_PATIENCE", 0.2)
    faults.away = True
    with pytest.raises(ObjectStoreUnreachableError, match="runs/x cannot be reached") as caught:
        there.get("x")
    assert is_transient(caught.value)
    faults.away = False
    with pytest.raises(FileNotFoundError):
        there.get("x")


def test_a_store_that_refuses_is_said_at_once(there: Objects, faults: Faults) -> None:
    started = time.monotonic()
    with pytest.raises((ObjectStoreError, FileNotFoundError)) as caught:
        Objects("s3://no-such-bucket/runs").put("x", b"")
    assert time.monotonic() - started < 10
    assert not is_transient(caught.value)


def test_other_content_is_damage(there: Objects, tmp_path: Path) -> None:
    there.put("x", b"right")
    with pytest.raises(DamagedObjectError, match="x is not as it was stored"):
        there.fetch("x", tmp_path / "x", hashlib.sha256(b"wrong").hexdigest())
    assert not list(tmp_path.iterdir())
    there.put("j", b"{")
    with pytest.raises(DamagedObjectError, match="is no JSON"):
        there.get_json("j")


def test_names_do_not_lead_out(there: Objects, tmp_path: Path) -> None:
    there.put("d/../../e", b"x")
    listed = there.sizes("d")
    if listed:  # some stores take such names as they are
        with pytest.raises(DamagedObjectError, match="leads out"):
            there.fetch_folder("d", tmp_path / "in")
    assert not (tmp_path / "e").exists()


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "BEAT", 0.2)
    monkeypatch.setattr(leases, "DEAD", 1.5)


@pytest.mark.usefixtures("fast")
def test_a_lease_has_one_holder(there: Objects) -> None:
    inside: list[int] = []
    most = []

    def work(number: int) -> None:
        with lease(there, "l", wait=lambda: None) as held:
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.3)
            held.check()
            inside.remove(number)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    assert most == [1, 1, 1, 1]
    assert len(there.sizes("l")) == 1, "older ones are removed"


@pytest.mark.usefixtures("fast")
def test_who_does_not_wait_is_told(there: Objects) -> None:
    with lease(there, "l"):
        started = time.monotonic()
        with pytest.raises(LockHeldError, match="runs/l"), lease(there, "l"):
            pass
        assert time.monotonic() - started < leases.DEAD
    with lease(there, "l"):
        pass


@pytest.mark.usefixtures("fast")
def test_a_dead_holder_loses_its_lease(there: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that was only suspended: it learns it when it asks. What else it held is free."""
    monkeypatch.setattr(leases, "HOLDER", "somebody")
    first, other = lease(there, "l"), lease(there, "m")
    held, _ = first.__enter__(), other.__enter__()
    held.beating.stop()  # as SIGSTOP does, or a machine that is cut off
    monkeypatch.setattr(leases, "HOLDER", "somebody else")
    with lease(there, "l") as second:
        second.check()
        started = time.monotonic()
        with lease(there, "m"):
            assert time.monotonic() - started < leases.DEAD
        with pytest.raises(LeaseLostError):
            held.check()
        first.__exit__(None, None, None)  # it releases what it thinks it has
        with pytest.raises(LockHeldError), lease(there, "l"):
            pass
        second.check()
    other.__exit__(None, None, None)


@pytest.mark.usefixtures("fast")
def test_a_holder_that_cannot_reach_the_store_knows(there: Objects, faults: Faults) -> None:
    with lease(there, "l") as held:
        held.check()
        faults.away = True
        time.sleep(leases.DEAD + 0.5)
        assert not held.beating.alive
        with pytest.raises(LeaseLostError):
            held.check()
        faults.away = False


FINGERPRINT = "f" * 64


def made(
    store: Store, text: str, fingerprint: str = FINGERPRINT, replacing: bool = False
) -> Artifact:
    output = store.workspace("s", fingerprint) / "output"
    (output / "rows").mkdir()
    (output / "rows" / "a.txt").write_text(text)
    return store.publish(
        "s", fingerprint, kind="k", parts={}, rows=1, rejected={}, properties={}, versions={},
        measured={"seconds": 1.0}, replacing=replacing,
    )  # fmt: skip


def test_a_result_is_there_for_other_machines(there: Objects, tmp_path: Path) -> None:
    mine, theirs = Store(tmp_path / "1", there), Store(tmp_path / "2", there)
    assert theirs.find("s", FINGERPRINT) is None
    artifact = made(mine, "x")
    found = theirs.find("s", FINGERPRINT)
    assert found is not None and found.digest == artifact.digest
    assert not found.path.exists(), "fetched when it is used"
    assert (found.folder / "rows" / "a.txt").read_text() == "x"
    names = {"manifest.json", "rows/a.txt"}
    assert {p.relative_to(found.path).as_posix() for p in found.path.rglob("*.*")} == names
    again = theirs.find("s", FINGERPRINT)
    assert again is not None and again.fetch is None, "this machine has it"
    assert theirs.measured(found) == {"seconds": 1.0}


def test_the_first_of_two_counts(there: Objects, tmp_path: Path) -> None:
    """Unless the second was told to replace it."""
    one, two = Store(tmp_path / "1", there), Store(tmp_path / "2", there)
    first = made(one, "first")
    second = made(two, "second")
    assert second.digest == first.digest and (second.folder / "rows/a.txt").read_text() == "first"
    assert len(there.folders(f"artifacts/{first.name}")) == 1, "nothing is left of the second"
    third = made(two, "third", replacing=True)
    found = one.find("s", FINGERPRINT)
    assert found is not None and found.digest == third.digest
    assert (found.folder / "rows" / "a.txt").read_text() == "third"


def test_half_a_result_is_none(
    there: Objects, faults: Faults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before its commit, it is not there; what a kill left is collected."""
    store = Store(tmp_path / "1", there)
    faults.choose = lambda asked: "500" if asked.conditional else None
    with monkeypatch.context() as patch, pytest.raises(ObjectStoreUnreachableError):
        patch.setattr(objects, "PATIENCE", 0.5)
        made(store, "x")
    faults.choose = lambda asked: None
    assert store.find("s", FINGERPRINT) is None and store.damage("s", FINGERPRINT) is None
    (name,) = there.folders("artifacts")
    assert there.sizes(f"artifacts/{name}"), "the files of an attempt that does not count"
    assert store.collect([]) != []
    assert there.folders("artifacts") == []


@pytest.mark.parametrize("what", ["gone", "short", "manifest"])
def test_damage_is_named_and_made_again(there: Objects, tmp_path: Path, what: str) -> None:
    artifact = made(Store(tmp_path / "1", there), "good")
    key = f"artifacts/{artifact.name}/{artifact.attempt}"
    if what == "gone":
        there.remove([f"{key}/rows/a.txt"])
    else:
        there.put(f"{key}/rows/a.txt" if what == "short" else f"{key}/manifest.json", b"{")
    for folder in ("1", "2"):
        store = Store(tmp_path / folder, there)
        if what != "manifest" or folder == "2":
            assert store.find("s", FINGERPRINT) is None
            assert store.damage("s", FINGERPRINT)
    made(Store(tmp_path / "2", there), "good")
    for folder in ("1", "2", "3"):
        found = Store(tmp_path / folder, there).find("s", FINGERPRINT)
        assert found is not None and (found.folder / "rows" / "a.txt").read_text() == "good"


def test_other_bytes_are_not_used(there: Objects, tmp_path: Path) -> None:
    artifact = made(Store(tmp_path / "1", there), "good")
    there.put(f"artifacts/{artifact.name}/{artifact.attempt}/rows/a.txt", b"evil")
    found = Store(tmp_path / "2", there).find("s", FINGERPRINT)
    assert found is not None
    with pytest.raises(DamagedObjectError, match="is not as it was stored"):
        assert found.folder
    assert not found.path.exists()
    (problem,) = Store(tmp_path / "2", there).problems(found, again=True)
    assert "rows/a.txt is not as it was stored" in problem


@pytest.mark.usefixtures("fast")
def test_collect_keeps_what_others_use(there: Objects, tmp_path: Path) -> None:
    mine, theirs = Store(tmp_path / "1", there), Store(tmp_path / "2", there)
    used, named, old, making = (letter * 64 for letter in "abcd")
    artifacts = [made(mine, letter, letter * 64) for letter in "abc"]
    theirs.hold(used)
    with theirs.lease(making, wait=lambda: None):
        there.put(f"artifacts/s-{making[:24]}/attempt/x", b"half")
        removed = mine.collect([artifacts[1].name])
        assert there.sizes(f"artifacts/s-{making[:24]}") == {"attempt/x": 4}
    assert f"artifacts/s-{old[:24]}" in removed
    assert theirs.find("s", old) is None
    for kept in (used, named):
        found = theirs.find("s", kept)
        assert found is not None and (found.folder / "rows" / "a.txt").exists()
    theirs.release()
    mine.collect([])
    assert there.folders("artifacts") == [] and there.folders("measured") == []


@pytest.mark.usefixtures("fast")
def test_what_the_dead_used_is_collected(there: Objects, tmp_path: Path) -> None:
    mine, dead = Store(tmp_path / "1", there), Store(tmp_path / "2", there)
    made(mine, "x")
    dead.hold(FINGERPRINT)
    assert dead.remote is not None and dead.remote._holding is not None
    dead.remote._holding.stop()
    mine.collect([])
    assert there.folders("artifacts") == [] and there.sizes("holds") == {}


def test_unfinished_work_is_found_by_another_machine(there: Objects, tmp_path: Path) -> None:
    one, two = Store(tmp_path / "1", there), Store(tmp_path / "2", there)
    scratch = one.workspace("s", FINGERPRINT) / "scratch"
    (scratch / "old").write_text("1")
    one.keep("s", FINGERPRINT)
    (scratch / "old").unlink()
    (scratch / "new").write_text("2")
    one.keep("s", FINGERPRINT)
    assert [p.name for p in (two.workspace("s", FINGERPRINT) / "scratch").iterdir()] == ["new"]
    two.discard("s", FINGERPRINT)
    assert there.folders("work") == []


def test_the_last_of_a_lease_says_whose_it_is(there: Objects) -> None:
    assert last_of(there, "l") == (-1, b"")
    there.put("l/000003", b"{}")
    there.put("l/000010", json.dumps({"released": True}).encode())
    assert last_of(there, "l")[0] == 10
    with lease(there, "l") as held:
        assert held.beating.name == "l/000011"
