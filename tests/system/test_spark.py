"""A Spark cluster of a master and two workers on this machine: the same bytes as without it.

Takes Java and, from here or from the environment of the Python that SPARK_PYTHON names,
`pip install --no-deps beam-pyspark-runner==0.0.3 pyspark==4.3.0 py4j==0.10.9.9`: that runner asks
for a Beam of 2023.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipelines.store.runs_dir import CACHE
from tests.object_store import BUCKET, object_store

RUNNER = "beam.runner=beam_pyspark_runner.pyspark_runner.PySparkRunner"
WHERE = "import beam_pyspark_runner, py4j, pyspark; print(*pyspark.__path__)"
SUBMIT = """--master {} --executor-memory 512m --total-executor-cores 2
--conf spark.scheduler.minRegisteredResourcesRatio=1 pyspark-shell"""  # waits for both workers
WORKERS = "first", "second"
LOCAL = "--host", "127.0.0.1", "--port", "0", "--webui-port", "0"


class Cluster:
    """The processes and the run. Each has its log in the folder, the executors theirs below it."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, environment
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *command: str | Path) -> None:
        with (self.folder / name).open("wb") as log:
            self.processes[name] = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )

    def said(self, name: str, pattern: str) -> str:
        """Waits until a process says this."""
        ends = time.monotonic() + 60
        while (found := re.search(pattern, (self.folder / name).read_text())) is None:
            assert self.processes[name].poll() is None and time.monotonic() < ends, name
            time.sleep(0.1)
        return found[0]

    def kill(self, name: str) -> None:
        """With a worker go its executors."""
        if self.processes[name].poll() is None:
            os.killpg(self.processes[name].pid, signal.SIGKILL)
            self.processes[name].wait()

    def tasks(self, worker: str) -> int:
        """How many tasks a worker's executors have begun."""
        logs = (self.folder / worker).with_suffix(".work").glob("app-*/*/stderr")
        return sum(log.read_text().count("Running task") for log in logs)

    def run(self, *arguments: str | Path) -> None:
        self.start("run", sys.executable, "-m", "pipelines.run", *arguments, "--set", RUNNER)

    def finish(self) -> None:
        assert self.processes["run"].wait(timeout=300) == 0, (self.folder / "run").read_text()


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """The URL of an object store, which all processes can reach."""
    pytest.importorskip("moto")
    pytest.importorskip("s3fs")
    with object_store() as made:
        for name, value in made.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
        yield f"s3://{BUCKET}/runs"


@pytest.fixture
def cluster(root: Path, tmp_path: Path, bucket: str) -> Iterator[Cluster]:
    python = os.environ.get("SPARK_PYTHON", sys.executable)
    found = subprocess.run([python, "-c", WHERE], capture_output=True, text=True)
    if found.returncode or shutil.which("java") is None:
        pytest.skip("takes java, pyspark and beam-pyspark-runner (SPARK_PYTHON=their Python)")
    spark, folder = Path(found.stdout.strip()), tmp_path / "cluster"
    folder.mkdir()
    made = Cluster(folder, {
        **os.environ, "PYTHONPATH": os.pathsep.join(map(str, [root, tmp_path, spark.parent])),
        "PYSPARK_PYTHON": sys.executable, "SPARK_HOME": str(spark), "SPARK_CONF_DIR": str(folder),
        "SPARK_LOCAL_DIRS": str(folder), "SPARK_LOCAL_IP": "127.0.0.1",
    })  # fmt: skip
    program = spark / "bin" / "spark-class"
    try:
        made.start("master", program, "org.apache.spark.deploy.master.Master", *LOCAL)
        master = made.said("master", r"spark://\S+")
        made.environment["PYSPARK_SUBMIT_ARGS"] = SUBMIT.format(master)
        for name in WORKERS:
            made.start(name, program, "org.apache.spark.deploy.worker.Worker", *LOCAL, master,
                       "--cores", "1", "--work-dir", folder / f"{name}.work")  # fmt: skip
        for name in WORKERS:
            made.said(name, "Successfully registered")
        yield made
    finally:
        for name in reversed(made.processes):
            made.kill(name)


def test_the_same_bytes_through_an_object_store(
    cluster: Cluster, small_job: Callable[..., Path], tmp_path: Path, bucket: str,
    run_pipeline: Callable[..., object], artifact_bytes: Callable[[Path], dict[str, bytes]],
) -> None:  # fmt: skip
    """Nothing of the run's folder is shared."""
    whole = small_job(tmp_path), "--to", "text", "--runs-dir"
    run_pipeline(*whole, tmp_path / "alone")
    cluster.run(*whole, bucket)
    cluster.finish()
    (cache,) = (tmp_path / "cache").iterdir()
    assert artifact_bytes(cache) == artifact_bytes(tmp_path / "alone")


def test_the_same_bytes_even_if_a_worker_is_killed(
    cluster: Cluster, small_job: Callable[..., Path], tiny_job: Path, tmp_path: Path,
    run_pipeline: Callable[..., object], artifact_bytes: Callable[[Path], dict[str, bytes]],
) -> None:  # fmt: skip
    """Spark gives what the worker had to do to the other one."""
    alone, spread = tmp_path / "alone", tmp_path / "spread"
    whole = small_job(tmp_path), "--to", "text", "--runs-dir"
    run_pipeline(*whole, alone)
    cluster.run(*whole, spread)
    cluster.finish()
    assert sum(map(cluster.tasks, WORKERS)) >= 6, "at least one for each Beam job"
    slow = tiny_job, "--set", "second.does=slow", "--set", "second.size=120", "--runs-dir"
    run_pipeline(*slow, alone)
    first = cluster.tasks("first")
    cluster.run(*slow, spread)
    while cluster.tasks("first") == first:
        assert cluster.processes["run"].poll() is None
        time.sleep(0.1)
    cluster.kill("first")
    cluster.finish()
    assert "Lost executor" in (spread / "job" / "latest" / "beam.log").read_text()
    assert len(artifact_bytes(alone)) > 9 and artifact_bytes(spread) == artifact_bytes(alone)
