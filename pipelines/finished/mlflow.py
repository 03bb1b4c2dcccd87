"""A run's parameters, scores and curves in MLflow: `python -m pipelines.mlflow runs/gemini/latest`.

Calls MLflow's REST API directly, so nothing needs to be installed. Any MLflow 2 or 3 server works.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from http.client import HTTPException
from pathlib import Path
from typing import Any

from pipelines.contracts.reports import REPORT, Report
from pipelines.contracts.runs import RunRecord
from pipelines.contracts.shown import complain, tell
from pipelines.store.runs_dir import run_folder

TAG = "pipelines.run"
METRICS, PARAMETERS = 1000, 100
"""The maximum number of each in one request."""
VALUE = 500
"""Characters of a parameter that every version of the server accepts."""


class MlflowError(Exception):
    """The server refused the request, or cannot be reached."""


class Server:
    """The few calls of MLflow's REST API that logging needs."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def call(self, name: str, body: Mapping[str, object]) -> Any:
        request = urllib.request.Request(
            f"{self.url}/api/2.0/mlflow/{name}",
            json.dumps(body).encode("utf-8"),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                told = json.load(answer)
        except urllib.error.HTTPError as error:
            reason = error.read().decode("utf-8", "replace")
            raise MlflowError(f"{self.url} refused {name}: {reason}") from error
        except (urllib.error.URLError, HTTPException, OSError, ValueError) as error:
            raise MlflowError(f"no MLflow server at {self.url}: {error}") from error
        if not isinstance(told, dict):
            raise MlflowError(f"what answers at {self.url} is no MLflow server")
        return told

    def experiment(self, name: str) -> str:
        """The id of an experiment, which is created if it does not exist."""
        escaped = name.replace("'", "\\'")
        matches = self.call(
            "experiments/search", {"filter": f"name = '{escaped}'", "max_results": 1}
        ).get("experiments")
        if matches:
            return str(matches[0]["experiment_id"])
        return str(self.call("experiments/create", {"name": name})["experiment_id"])


def log_run(server: Server, folder: Path) -> tuple[str, bool]:
    """Logs the run in a folder; returns its MLflow id, and whether it is new. A run that was
    logged before is not changed."""
    record = RunRecord.read(folder)
    if record.ended is None:
        raise ValueError("the run has not ended")
    experiment = server.experiment(record.pipeline)
    known = server.call(
        "runs/search",
        {
            "experiment_ids": [experiment],
            "filter": f"tags.\"{TAG}\" = '{record.run}'",
            "max_results": 1,
        },
    ).get("runs")
    if known:
        return str(known[0]["info"]["run_id"]), False
    started, ended = _milliseconds(record.started), _milliseconds(record.ended)
    created = server.call(
        "runs/create",
        {"experiment_id": experiment, "run_name": record.run, "start_time": started},
    )
    run = str(created["run"]["info"]["run_id"])
    for batch in _batches(list(parameters(record)), PARAMETERS):
        server.call("runs/log-batch", {"run_id": run, "params": batch})
    points = [{**asdict(point), "timestamp": ended} for point in metrics(record, folder)]
    for batch in _batches(points, METRICS):
        server.call("runs/log-batch", {"run_id": run, "metrics": batch})
    server.call(
        "runs/update",
        {
            "run_id": run,
            "status": "FINISHED" if record.status == "complete" else "FAILED",
            "end_time": ended,
        },
    )
    # The tag that identifies the run comes last: if logging broke off, it starts again.
    tags = {TAG: record.run, "status": record.status, **_digests(record)}
    listed = [{"key": key, "value": value} for key, value in tags.items()]
    server.call("runs/log-batch", {"run_id": run, "tags": listed})
    return run, True


def parameters(record: RunRecord) -> Iterator[dict[str, str]]:
    """Every resolved option of every stage."""
    yield {"key": "seed", "value": str(record.seed)}
    for stage, facts in record.stages.items():
        for key, value in facts.parts.get("CONFIG", {}).items():
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield {"key": _key(f"{stage}.{key}"), "value": text[:VALUE]}


@dataclass(frozen=True)
class Metric:
    """A number as MLflow keeps it."""

    key: str
    value: float
    step: int


def metrics(record: RunRecord, folder: Path) -> Iterator[Metric]:
    """Every score with the ends of its interval, and every point of the learning curves."""
    for score in record.scores:
        names = [score.task, score.split, *(score.slice or {}).values()]
        name = ".".join([*names, score.metric, *filter(None, [score.baseline])])
        ends = score.ci95 or (None, None)
        for suffix, value in (("", score.value), (".low", ends[0]), (".high", ends[1])):
            if value is not None and math.isfinite(value):
                yield Metric(_key(name + suffix), value, 0)
    report = folder / "report"
    if not (report / REPORT).exists():
        return
    for stage, points in Report.read(report).curves.items():
        for point in points:
            for key, value in point.items():
                if key != "step" and math.isfinite(value):
                    yield Metric(_key(f"{stage}.{key}"), value, int(point["step"]))


def _digests(record: RunRecord) -> dict[str, str]:
    return {
        _key(f"digest.{stage}"): facts.digest
        for stage, facts in record.stages.items()
        if facts.digest
    }


def _key(text: str) -> str:
    """A name with only the characters that MLflow allows in one."""
    return "".join(c if (c.isascii() and c.isalnum()) or c in "_-. " else "_" for c in text)[:250]


def _milliseconds(time: str) -> int:
    return int(datetime.fromisoformat(time).timestamp() * 1000)


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def main(arguments: list[str] | None = None) -> int:
    command = argparse.ArgumentParser(
        prog="python -m pipelines.mlflow", description="Logs finished runs to an MLflow server."
    )
    command.add_argument("runs", type=run_folder, nargs="+", help="run folders, or their URLs")
    command.add_argument(
        "--uri",
        default=os.environ.get("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000"),
        help="the server (default: $MLFLOW_TRACKING_URI, or port 5000 of this machine)",
    )
    options = command.parse_args(arguments)
    server = Server(options.uri)
    for folder in options.runs:
        try:
            run, new = log_run(server, folder)
        except (MlflowError, OSError, ValueError, LookupError, TypeError) as error:
            complain(f"{folder}: {type(error).__name__}: {error}")
            return 1
        tell(f"{folder}: {'logged as' if new else 'was logged before as'} {run}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
