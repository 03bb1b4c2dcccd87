"""A run's numbers for Prometheus, as a text file and through a Pushgateway."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.exposition import push_to_gateway

from pipelines.contracts.runs import RunRecord
from pipelines.store.files import replacing
from pipelines.telling.options import MetricsConfig, from_environment, told_safely

JOB = "pipelines"
SECONDS = 20


def publish(
    metrics: MetricsConfig,
    record: RunRecord,
    earlier: Iterable[RunRecord],
    base: Path,
    problem: Callable[[str], None],
) -> None:
    """Writes and pushes the numbers of a run that has ended.

    Args:
        earlier: runs of the pipeline before this one, the newest first.
        problem: is told, in a sentence, what could not be published.
    """
    registry = numbers(record, earlier)
    if metrics.file is not None:
        path = base / metrics.file
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                temporary.write_bytes(generate_latest(registry))
                temporary.chmod(0o644)  # node_exporter is another user
        except OSError as error:
            problem(f"metrics cannot be written to {path}: {error.strerror}")
    if metrics.pushgateway is not None:
        try:
            address = from_environment(metrics.pushgateway)
            push_to_gateway(
                address, JOB, registry, grouping_key={"pipeline": record.pipeline}, timeout=SECONDS
            )
        except Exception as error:  # urllib has several
            problem(f"metrics cannot be pushed: {told_safely(error)}")


def numbers(record: RunRecord, earlier: Iterable[RunRecord]) -> CollectorRegistry:
    """The numbers of a run; see the descriptions."""
    registry = CollectorRegistry()

    def gauge(name: str, about: str, *labels: str) -> Gauge:
        return Gauge(f"pipeline_{name}", about, ["pipeline", *labels], registry=registry)

    name = record.pipeline
    started, ended = _moment(record.started), _moment(record.ended or record.started)
    good = [each for each in (record, *earlier) if each.status == "complete" and each.ended]
    success = gauge("last_success_timestamp_seconds", "When the last good run ended")
    if good:
        success.labels(name).set(_moment(good[0].ended or ""))
    gauge("run_timestamp_seconds", "When the last run ended").labels(name).set(ended)
    gauge("run_duration_seconds", "How long it took").labels(name).set(ended - started)
    gauge("run_exit_code", "Its exit code").labels(name).set(record.exit_code or 0)
    late = gauge("run_late", "Whether it took longer than expected (1) or not (0)")
    late.labels(name).set(int(record.late))
    seconds = gauge("stage_seconds", "Seconds of a stage in the last run", "stage")
    rows = gauge("stage_rows", "Rows that a stage made", "stage")
    rejects = gauge("stage_rejected_rows", "Rows that a stage rejected", "stage")
    attempts = gauge("stage_attempts", "How often a stage was tried", "stage")
    for stage, facts in record.stages.items():
        if facts.status == "skipped":
            continue
        seconds.labels(name, stage).set(facts.seconds)
        rows.labels(name, stage).set(facts.rows)
        rejects.labels(name, stage).set(sum(facts.rejected.values()))
        attempts.labels(name, stage).set(facts.attempts)
    scores = gauge("score", "A score over all rows of a split", "task", "split", "metric")
    for score in record.scores:
        if score.whole and score.own and math.isfinite(score.value):
            scores.labels(name, score.task, score.split, score.metric).set(score.value)
    gates = gauge("gate_passed", "Whether a gate passed (1) or failed (0)", "gate")
    for outcome in record.gates:
        gates.labels(name, outcome.gate).set(int(outcome.passed))
    return registry


def _moment(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()
