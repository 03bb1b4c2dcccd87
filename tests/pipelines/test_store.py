"""Artifacts: complete or absent, found again, shared between processes, collected."""

from __future__ import annotations

import multiprocessing
import threading
from pathlib import Path

import pytest

from pipelines.store.artifacts import Artifact, Store
from pipelines.store.leases import LockHeldError, lock


def publish(store: Store, fingerprint: str, text: str = "hello", stage: str = "s") -> Artifact:
    (store.workspace(stage, fingerprint) / "output" / "a.txt").write_text(text)
    return store.publish(
        stage, fingerprint, kind="k", parts={}, rows=1, rejected={}, properties={"p": 1},
        versions={}, measured={"seconds": 1.5},
    )  # fmt: skip


def test_publish_and_find(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.find("s", "f" * 64) is None
    published = publish(store, "f" * 64)
    artifact = store.find("s", "f" * 64)
    assert artifact is not None
    assert (artifact.digest, artifact.properties) == (published.digest, {"p": 1})
    assert store.measured(artifact) == {"seconds": 1.5}
    assert not list((tmp_path / "work").iterdir())


def test_digest_is_of_content_alone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert publish(store, "a" * 64).digest == publish(store, "b" * 64).digest
    assert publish(store, "c" * 64, "other").digest != publish(store, "a" * 64).digest


@pytest.mark.parametrize("damage", ["cut", "remove", "manifest"])
def test_damaged_artifact_is_not_found(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path)
    folder = publish(store, "f" * 64).folder
    if damage == "cut":
        (folder / "a.txt").write_text("hel")
    elif damage == "remove":
        (folder / "a.txt").unlink()
    else:
        (folder / "manifest.json").write_text('{"kind": ')
    assert store.find("s", "f" * 64) is None
    publish(store, "f" * 64)
    assert store.find("s", "f" * 64) is not None


def _hold(path: Path, held: object, release: object) -> None:
    with lock(path):
        held.set()  # type: ignore[attr-defined]
        release.wait(20)  # type: ignore[attr-defined]


def test_lock_is_held_across_processes_and_freed_by_death(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    held, release = spawn.Event(), spawn.Event()
    holder = spawn.Process(target=_hold, args=(tmp_path / "lock", held, release))
    holder.start()
    assert held.wait(20)
    with pytest.raises(LockHeldError), lock(tmp_path / "lock"):
        pass
    holder.kill()
    holder.join()
    with lock(tmp_path / "lock"):
        pass


def test_lease_waits_for_the_other(tmp_path: Path) -> None:
    store, waited, order = Store(tmp_path), threading.Event(), []

    def second() -> None:
        with store.lease("f" * 64, waited.set):
            order.append("second")

    with store.lease("f" * 64, lambda: None):
        thread = threading.Thread(target=second)
        thread.start()
        assert waited.wait(10)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_collect_keeps_what_is_named_and_what_is_leased(tmp_path: Path) -> None:
    store = Store(tmp_path)
    named, leased, gone = (publish(store, letter * 64) for letter in "abc")
    with store.lease("b" * 64, lambda: None):
        removed = store.collect([named.folder.name])
    assert removed == [str(gone.folder)]
    assert named.folder.exists() and leased.folder.exists() and not gone.folder.exists()
