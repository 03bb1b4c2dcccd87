"""Runs in MLflow: a real server if MLflow is installed; MLFLOW can give the path of its command."""

from __future__ import annotations

import json
import os
import shutil
import socket
import socketserver
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.contracts.runs import RunRecord
from pipelines.finished.mlflow import MlflowError, Server, main, metrics, parameters

COMMAND = os.environ.get("MLFLOW") or shutil.which("mlflow")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    if COMMAND is None:
        pytest.skip("MLflow is not installed (pip install mlflow, or MLFLOW=path of its command)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [
            COMMAND, "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
            "--backend-store-uri", f"sqlite:///{tmp_path / 'mlflow.db'}",
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + 120
        while True:
            try:
                Server(url).call("experiments/search", {"max_results": 1})
                break
            except MlflowError:
                assert process.poll() is None and time.monotonic() < end
                time.sleep(0.5)
        yield url
    finally:
        os.killpg(process.pid, 15)
        process.wait()


def test_a_run_is_logged_once_with_all_its_numbers(
    server: str, finished: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = finished[1] / "small" / "latest"
    record = json.loads((folder / "run.json").read_text())
    assert main([str(folder), "--uri", server]) == 0
    assert main([str(folder), "--uri", server]) == 0
    output = capsys.readouterr().out
    assert "logged as" in output and "was logged before as" in output
    api = Server(server)
    experiment = api.experiment("small")
    (run,) = api.call("runs/search", {"experiment_ids": [experiment]})["runs"]
    assert run["info"]["run_name"] == record["run"] and run["info"]["status"] == "FINISHED"
    logged = {entry["key"]: entry["value"] for entry in run["data"]["metrics"]}
    for score in record["scores"]:
        assert logged[f"translate.test.{score['metric']}"] == pytest.approx(score["value"])
        assert logged[f"translate.test.{score['metric']}.low"] == pytest.approx(score["ci95"][0])
    assert logged["train.valid_loss"] > 0
    options = {entry["key"]: entry["value"] for entry in run["data"]["params"]}
    assert options["train.steps"] == "20" and options["seed"] == "5"
    tags = {entry["key"]: entry["value"] for entry in run["data"]["tags"]}
    assert tags["digest.train"] == record["stages"]["train"]["digest"]


def test_what_is_logged(finished: tuple[Path, Path]) -> None:
    folder = finished[1] / "small" / "latest"
    record = RunRecord.read(folder)
    points = list(metrics(record, folder))
    steps = [point.step for point in points if point.key == "train.valid_loss"]
    assert steps == [10, 20]
    assert len({(point.key, point.step) for point in points}) == len(points)
    assert len({entry["key"] for entry in parameters(record)}) == len(list(parameters(record)))


def test_no_server_is_said(finished: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = finished[1] / "small" / "latest"
    assert main([str(folder), "--uri", "http://127.0.0.1:9"]) == 1
    assert "no MLflow server at http://127.0.0.1:9" in capsys.readouterr().err


@pytest.mark.parametrize(
    "answer",
    [b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.0 200 OK\r\n\r\n[]", b"HTTP/1.0 200 OK\r\n\r\n{"],
)
def test_what_is_no_mlflow_server_is_said(
    finished: tuple[Path, Path], answer: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    class Answer(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.connection.recv(10_000)
            self.wfile.write(answer)

    with socketserver.TCPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        assert main([str(finished[1] / "small" / "latest"), "--uri", url]) == 1
        server.shutdown()
    assert "MLflow server" in capsys.readouterr().err
    assert main([str(finished[1] / "small" / "latest"), "--uri", "http://127.0.0.1:80x"]) == 1
