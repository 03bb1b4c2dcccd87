"""Objects, leases and results in an object store, with a server that fails in every way.

The server is moto's, which keeps S3's promises: conditional creation, and that what was written is
read.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipelines.contracts.runs import RUN, RunRecord
from pipelines.running.attempts import is_transient
from pipelines.running.beam_jobs import Recorded, Ticks
from pipelines.store import leases, objects
from pipelines.store.artifacts import Artifact, Store
from pipelines.store.files import write_json
from pipelines.store.leases import LeaseLostError, LockHeldError, last_of, lease
from pipelines.store.objects import (
    DamagedObjectError,
    Objects,
    ObjectStoreError,
    ObjectStoreUnreachableError,
)
from pipelines.store.runs_dir import CACHE, RunsDir
from pipelines.store.shared import Shared, SharedPath
from stages.rows.files import sizes_of
from tests.object_store import BUCKET, KINDS, Faults, ObjectStore, object_store

pytest.importorskip("moto")
s3fs = pytest.importorskip("s3fs")
OFTEN = ("reset after", "truncate", "503")
"""Faults that are tried with every change."""


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


def test_objects_are_written_and_read(there: Objects, faults: Faults, tmp_path: Path) -> None:
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
    before = faults.requests
    there.get("a/b.txt")
    assert faults.requests == before + 1, "it pays to ask once: every request takes its time"
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


@pytest.mark.parametrize(
    "kind", [k if k in OFTEN else pytest.param(k, marks=pytest.mark.long) for k in KINDS]
)
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


def test_names_do_not_lead_out(
    there: Objects, server: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Objects can have names that are no names of files; what lists them passes them over."""
    import boto3

    client = boto3.client("s3", endpoint_url=server.environment["AWS_ENDPOINT_URL"])
    prefix = there.url.removeprefix(f"s3://{BUCKET}/")
    record = RunRecord.model_validate(json.loads(GOLDEN.read_text())).to_json()
    for name in (
        "../../e",
        "p/../run.json",
        "../run.json",
        "p/../../run.json",
        "/x",
        "p//run.json",
    ):
        body = json.dumps(record).encode()
        client.put_object(Bucket=BUCKET, Key=f"{prefix}/{name}", Body=body)
    keys = client.list_objects_v2(Bucket=BUCKET, Prefix=prefix)["Contents"]
    assert len(keys) == 6
    there.put("d/good", b"x")
    assert there.sizes("") == {"d/good": 1}
    assert not {"..", "."} & set(there.folders(""))
    monkeypatch.setenv(CACHE, str(tmp_path / "home" / "cache"))
    runs = RunsDir.of(there.url)
    for pipeline in runs.pipelines():
        runs.pull(pipeline, whole=True)
    outside = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert all(path.is_relative_to(runs.folder / "d") for path in outside)
    with pytest.raises(ValueError, match="leads out of the store"):
        Shared(tmp_path, there).fetched("work/../../e")


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
GOLDEN = Path(__file__).parent.parent / "golden" / "0.1.0" / "golden" / "latest" / "run.json"


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


@pytest.mark.parametrize("what", ["gone", "short", "manifest", "commit"])
def test_damage_is_named_and_made_again(there: Objects, tmp_path: Path, what: str) -> None:
    artifact = made(Store(tmp_path / "1", there), "good")
    key = f"artifacts/{artifact.name}/{artifact.attempt}"
    if what == "gone":
        there.remove([f"{key}/rows/a.txt"])
    else:
        damaged = {"short": f"{key}/rows/a.txt", "manifest": f"{key}/manifest.json"}
        there.put(damaged.get(what, f"artifacts/{artifact.name}/commit.json"), b"{")
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
    store = Store(tmp_path / "2", there)
    assert store.find("s", FINGERPRINT) is None, "so the next run makes it again"
    made(store, "good")
    assert (store.path("s", FINGERPRINT) / "rows" / "a.txt").read_text() == "good"


def test_all_objects_are_read_by_who_verifies(there: Objects, tmp_path: Path) -> None:
    """Also on the machine that has a good copy."""
    store = Store(tmp_path / "1", there)
    artifact = made(store, "good")
    found = store.read(artifact.path)
    assert found is not None and list(store.problems(found, again=True)) == []
    there.put(f"artifacts/{artifact.name}/{artifact.attempt}/rows/a.txt", b"evil")
    (problem,) = store.problems(found, again=True)
    assert "rows/a.txt is not as it was stored" in problem


@pytest.mark.usefixtures("fast")
def test_collect_keeps_what_others_use(there: Objects, tmp_path: Path) -> None:
    mine, theirs = Store(tmp_path / "1", there), Store(tmp_path / "2", there)
    used, named, old, making = (letter * 64 for letter in "abcd")
    artifacts = [made(mine, letter, letter * 64) for letter in "abc"]
    theirs.hold(used)
    with theirs.lease(making, wait=lambda: None):
        there.put(f"artifacts/s-{making[:24]}/attempt/x", b"half")
        there.put(f"work/s-{making[:24]}/kept/x", b"half")
        removed = mine.collect([artifacts[1].name])
        assert there.sizes(f"artifacts/s-{making[:24]}") == {"attempt/x": 4}
        assert there.sizes(f"work/s-{making[:24]}") == {"kept/x": 4}
    assert f"artifacts/s-{old[:24]}" in removed
    assert theirs.find("s", old) is None
    for kept in (used, named):
        found = theirs.find("s", kept)
        assert found is not None and (found.folder / "rows" / "a.txt").exists()
    theirs.release()
    mine.collect([])
    assert there.folders("artifacts") == [] and there.folders("measured") == []
    assert there.folders("leases") == []


@pytest.mark.usefixtures("fast")
def test_a_collection_that_stops_removes_nothing_in_use(
    there: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither that nor another result's damage takes a result away; and what begins while it works
    is seen at its second look."""
    mine, theirs = Store(tmp_path / "1", there), Store(tmp_path / "2", there)
    for letter in "ab":
        made(mine, letter, letter * 64)
    there.put("artifacts/zz-000000/commit.json", b"<html>")
    assert mine.remote is not None
    look = mine.remote._signs_of_life
    looks: list[int] = []

    def signs() -> dict[str, bytes]:
        looks.append(1)
        if len(looks) == 2:
            raise ObjectStoreUnreachableError("gone")
        return look()

    monkeypatch.setattr(mine.remote, "_signs_of_life", signs)
    with pytest.raises(ObjectStoreUnreachableError):
        mine.collect([])
    assert all(theirs.find("s", letter * 64) for letter in "ab")

    def begins() -> dict[str, bytes]:
        theirs.hold("b" * 64)
        return look()

    monkeypatch.setattr(mine.remote, "_signs_of_life", begins)
    monkeypatch.setattr(mine.remote, "used", lambda: (set(), {}))
    removed = mine.collect([])
    assert theirs.find("s", "b" * 64) is not None and theirs.find("s", "a" * 64) is None
    assert any("zz-000000" in name for name in removed), "nobody can use it"
    theirs.release()


@pytest.mark.usefixtures("fast")
def test_an_outage_makes_nobody_dead(
    there: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the store is away, a holder cannot show that it lives: it is given its time again, by
    who waits and by who collects."""
    outage = leases.DEAD + 0.2
    mine, theirs = Store(tmp_path / "1", there), Store(tmp_path / "2", there)
    theirs.hold(FINGERPRINT)
    assert theirs.remote is not None and theirs.remote._holding is not None
    theirs.remote._holding.stop()
    monkeypatch.setattr(leases, "HOLDER", "silent")
    silent = lease(there, "l")
    silent.__enter__().beating.stop()
    assert mine.remote is not None
    look, signs = leases.last_of, mine.remote._signs_of_life
    looks: list[str] = []

    def late(objects: Objects, name: str) -> tuple[int, bytes]:
        looks.append(name)
        time.sleep(outage if len(looks) == 2 else 0)
        return look(objects, name)

    def late_signs() -> dict[str, bytes]:
        looks.append("")
        time.sleep(outage if len(looks) == 2 else 0)
        return signs()

    with monkeypatch.context() as patch:
        patch.setattr(leases, "last_of", late)
        started = time.monotonic()
        with lease(there, "l"):
            assert time.monotonic() - started > outage + leases.DEAD
    looks.clear()
    monkeypatch.setattr(mine.remote, "_signs_of_life", late_signs)
    started = time.monotonic()
    assert mine.remote.used()[0] == set()
    assert time.monotonic() - started > outage + leases.DEAD
    silent.__exit__(None, None, None)  # not by the garbage collector, in a thread of the network's


@pytest.mark.usefixtures("fast")
def test_who_was_cut_off_publishes_nothing(there: Objects, faults: Faults, tmp_path: Path) -> None:
    store = Store(tmp_path / "1", there)
    store.hold("a" * 64)
    assert store.remote is not None and store.remote._holding is not None
    store.remote._holding.stop()
    time.sleep(leases.DEAD + 0.1)
    with pytest.raises(LeaseLostError, match="may have been removed"):
        made(store, "x")
    assert is_transient(LeaseLostError())


def test_a_hold_that_failed_is_tried_again(
    there: Objects, faults: Faults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "1", there)
    faults.away = True
    with monkeypatch.context() as patch, pytest.raises(ObjectStoreUnreachableError):
        patch.setattr(objects, "PATIENCE", 0.1)
        store.hold(FINGERPRINT)
    faults.away = False
    store.hold(FINGERPRINT)
    assert len(there.sizes("holds")) == 1
    store.release()


@pytest.mark.usefixtures("fast")
def test_a_lease_inside_another(there: Objects, tmp_path: Path) -> None:
    """As the probe of worker pools has one, inside the stage's."""
    store = Store(tmp_path / "1", there)
    made(store, "old")
    with store.lease(FINGERPRINT, lambda: None):
        with store.lease("a" * 64, lambda: None):
            pass
        time.sleep(leases.DEAD + 0.1)
        made(store, "new", replacing=True)
    found = Store(tmp_path / "2", there).find("s", FINGERPRINT)
    assert found is not None and (found.folder / "rows" / "a.txt").read_text() == "new"
    with store.lease(FINGERPRINT, lambda: None):
        store._leases[FINGERPRINT].beating.stop()
        time.sleep(leases.DEAD + 0.1)
        with pytest.raises(LeaseLostError):
            made(store, "newer", replacing=True)


@pytest.mark.usefixtures("fast")
def test_an_old_number_is_no_lease(there: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was slow creates a number that others have had and removed."""
    create, slow, taken = Objects.create, threading.Event(), threading.Event()

    def late(self: Objects, name: str, data: bytes) -> bool:
        if threading.current_thread().name == "slow":
            slow.wait(20)
        return create(self, name, data)

    def work() -> None:
        with lease(there, "l", wait=lambda: None):
            taken.set()

    with lease(there, "l"):
        pass
    monkeypatch.setattr(Objects, "create", late)
    thread = threading.Thread(target=work, name="slow")
    thread.start()
    time.sleep(0.3)
    with lease(there, "l"):
        pass
    with lease(there, "l") as held:
        slow.set()
        assert not taken.wait(1.0)
        held.check()
    assert taken.wait(20)
    thread.join()


def test_a_store_without_conditions_is_said(there: Objects, faults: Faults) -> None:
    """It answers that it does not know the header; two could believe that each is alone."""
    faults.choose = lambda asked: "400" if asked.conditional else None
    with pytest.raises(ObjectStoreError, match="create objects only if there is none"):
        there.create("x", b"mine")
    with pytest.raises(ObjectStoreError), lease(there, "l", wait=lambda: None):
        pass
    assert faults.requests < 100


@pytest.mark.usefixtures("fast")
def test_a_store_that_passes_over_conditions_is_said(
    there: Objects, faults: Faults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some servers of S3's protocol answer 200 and overwrite."""
    monkeypatch.setenv(CACHE, str(tmp_path))
    with RunsDir.of(there.url).lock("p", None):
        pass
    faults.conditions = False
    with (
        pytest.raises(ObjectStoreError, match="does not know If-None-Match"),
        RunsDir.of(there.url).lock("p", lambda: None),
    ):
        pass


def test_runs_that_another_machine_removed_go(
    there: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = RunRecord.model_validate(json.loads(GOLDEN.read_text()))
    machines = []
    for machine in ("one", "two"):
        monkeypatch.setenv(CACHE, str(tmp_path / machine))
        runs = RunsDir.of(there.url)
        machines.append(runs)
        for name, status in (("a", "complete"), ("b", "failed"), ("c", "running")):
            folder = runs.folder / "p" / name
            folder.mkdir(parents=True, exist_ok=True)
            told = record.model_copy(update={"pipeline": "p", "run": name, "status": status})
            write_json(folder / RUN, told.to_json())
            if machine == "one":
                runs.save(folder)
    one, two = machines
    for name in "ac":
        one.remove_run(one.folder / "p" / name)
    two.pull("p")
    # What has not ended may be of this machine, and not have been sent yet.
    assert sorted(path.parent.name for path in two.folder.glob("p/*/run.json")) == ["b", "c"]


def test_a_stop_ends_a_transfer(there: Objects, faults: Faults, tmp_path: Path) -> None:
    for number in range(200):
        (tmp_path / str(number)).touch()
    faults.choose = lambda asked: "delay"

    class Stop(BaseException):
        pass

    def stop(*_: object) -> None:
        raise Stop

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    started = time.monotonic()
    with pytest.raises(Stop):
        there.send_folder(tmp_path, "x")
    assert time.monotonic() - started < 5
    faults.choose = lambda asked: None
    assert len(there.sizes("x")) < 100


def test_what_is_read_in_part_is_patient(there: Objects, faults: Faults) -> None:
    data = bytes(range(256)) * 40_000
    there.put("x", data)
    with there.opened("x") as file:
        faults.once("reset before", lambda asked: True, times=4)
        file.seek(5_000_000)
        assert file.read(1000) == data[5_000_000:5_001_000]
        faults.once("truncate", lambda asked: True, times=2)
        file.seek(-8, 2)
        assert file.read() == data[-8:]


@dataclass(frozen=True)
class Piece:
    name: str


@dataclass(frozen=True)
class Outcome:
    files: dict[str, int]


def test_pieces_of_one_process_leave_each_other_alone(there: Objects, tmp_path: Path) -> None:
    """Some engines give a worker several at a time."""
    shared: Shared = pickle.loads(pickle.dumps(Shared(tmp_path, there)))  # noqa: S301
    written, first_ended = threading.Event(), threading.Event()

    def work(piece: Piece, ticks: Ticks) -> Outcome:
        place = SharedPath(shared, f"work/s/scratch/rows/{piece.name}")
        place.here.parent.mkdir(parents=True, exist_ok=True)
        place.here.write_text(piece.name)
        if piece.name == "slow":
            written.set()
            first_ended.wait(20)
        else:
            written.wait(20)
        return Outcome(sizes_of(place))

    recorded = Recorded(work, SharedPath(shared, "work/s/scratch/label"))
    thread = threading.Thread(target=recorded, args=(Piece("slow"),))
    thread.start()
    recorded(Piece("fast"))
    first_ended.set()
    thread.join(20)
    assert there.get("work/s/scratch/rows/slow") == b"slow"
    assert json.loads(there.get("work/s/scratch/label/slow.json"))["files"]
    assert not [path for path in shared.root.rglob("*") if path.is_file()], "nothing stays"
    assert str(tmp_path) not in str(shared.root)


@pytest.mark.usefixtures("fast")
def test_what_the_dead_used_is_collected(there: Objects, tmp_path: Path) -> None:
    mine, dead = Store(tmp_path / "1", there), Store(tmp_path / "2", there)
    made(mine, "x")
    dead.hold(FINGERPRINT)
    assert dead.remote is not None and dead.remote._holding is not None
    dead.remote._holding.stop()
    mine.collect([])
    assert there.folders("artifacts") == [] and there.sizes("holds") == {}


def test_unfinished_work_is_found_by_another_machine(
    there: Objects, faults: Faults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = Store(tmp_path / "1", there), Store(tmp_path / "2", there)
    scratch = one.workspace("s", FINGERPRINT) / "scratch"
    (scratch / "old").write_text("1")
    one.keep("s", FINGERPRINT)
    (scratch / "old").unlink()
    (scratch / "new").write_text("2")
    one.keep("s", FINGERPRINT)
    third = Store(tmp_path / "3", there)
    (scratch / "newer").write_text("3")
    one.keep("s", FINGERPRINT)
    faults.once("500", lambda asked: "kept/newer" in asked.path, times=1000)
    with monkeypatch.context() as patch, pytest.raises(ObjectStoreUnreachableError):
        patch.setattr(objects, "PATIENCE", 0.2)
        third.workspace("s", FINGERPRINT)
    faults.choose = lambda asked: None
    assert {p.name for p in (third.workspace("s", FINGERPRINT) / "scratch").iterdir()} == {
        "new", "newer",
    }, "all or nothing"  # fmt: skip
    (scratch / "newer").unlink()
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
