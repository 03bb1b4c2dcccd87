"""Finished runs as OpenLineage and OpenTelemetry see them, at servers of the test's own."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pipelines.contracts.runs import Machine, RunRecord, StageRecord
from pipelines.send import main as send
from pipelines.store.files import write_json

if TYPE_CHECKING:
    from tests.pipelines.conftest import Server

DIGEST = "ab" * 32
ROWS = StageRecord(
    status="ran",
    reason="NEW",
    started="2026-11-30T01:00:01.500+00:00",
    seconds=2.25,
    rows=7,
    rejected={"bad": 2},
    digest=DIGEST,
    attempts=2,
    parts={"INPUT": {"s3://bucket/a/b.tsv": "cd", "/data/x.tsv": "ef", "package://p/q": "01"}},
)
TEXT = StageRecord(
    status="ran",
    reason="NEW",
    started="2026-11-30T01:00:04+00:00",
    seconds=1,
    digest=DIGEST[::-1],
    parts={"INPUT": {"records[0] (from rows)": DIGEST, "lineage (from rows)": DIGEST}},
)


def folder(path: Path, **changes: Any) -> Path:
    """A run's folder with its record."""
    record = RunRecord(
        pipeline="night",
        run="20261130T010000-000000-abcd",
        started="2026-11-30T01:00:00+00:00",
        ended="2026-11-30T01:20:30+00:00",
        status="complete",
        exit_code=0,
        seed=1,
        machine=Machine(platform="", cpus=1, python="", version="0.1.0"),
        stages={
            "old": StageRecord(status="cached", reason="unchanged"),
            "rows": ROWS,
            "text": TEXT,
            "late": StageRecord(status="skipped", reason="not selected"),
        },
    )
    path.mkdir(exist_ok=True)
    write_json(path / "run.json", record.model_copy(update=changes).to_json())
    return path


def lineage(server: Server, run: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    pytest.importorskip("openlineage.client")
    monkeypatch.setenv("OPENLINEAGE_URL", server.url)
    assert send(["openlineage", str(run)]) == 0
    return [json.loads(body) for _, _, body in server.got]


def test_lineage(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = lineage(server, folder(tmp_path / "run"), monkeypatch)
    told = [(event["job"]["name"], event["eventType"]) for event in events]
    assert told == [
        ("night", "START"),
        ("night.rows", "START"),
        ("night.rows", "COMPLETE"),
        ("night.text", "START"),
        ("night.text", "COMPLETE"),
        ("night", "COMPLETE"),
    ]
    run, rows, ended, text = (event["run"] for event in (*events[:3], events[3]))
    assert rows["runId"] == ended["runId"] != text["runId"]
    assert rows["facets"]["parent"]["run"]["runId"] == run["runId"] == events[-1]["run"]["runId"]
    begun, over = (datetime.fromisoformat(event["eventTime"]) for event in events[1:3])
    assert (over - begun).total_seconds() == 2.25
    inputs = [(each["namespace"], each["name"]) for each in events[1]["inputs"]]
    assert set(inputs) == {
        ("s3://bucket", "a/b.tsv"),
        ("file", "/data/x.tsv"),
        ("package://p", "q"),
    }
    (output,) = events[2]["outputs"]
    (again,) = events[3]["inputs"]
    assert (output["namespace"], output["name"]) == (again["namespace"], again["name"])
    assert output["facets"]["version"]["datasetVersion"] == DIGEST
    assert again["facets"]["version"]["datasetVersion"] == DIGEST
    assert output["outputFacets"]["outputStatistics"]["rowCount"] == 7
    twice = lineage(server, tmp_path / "run", monkeypatch)[len(events) :]
    assert [event["run"]["runId"] for event in twice] == [event["run"]["runId"] for event in events]


@pytest.mark.parametrize(
    ("status", "told"), [("failed", "FAIL"), ("gate failed", "FAIL"), ("stopped", "ABORT")]
)
def test_lineage_of_a_run_that_was_not_good(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str, told: str
) -> None:
    run = folder(tmp_path / "run", status=status, error="text: the disk is full")
    last = lineage(server, run, monkeypatch)[-1]
    assert last["eventType"] == told
    assert last["run"]["facets"]["errorMessage"]["message"] == "text: the disk is full"


def spans(server: Server, run: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The spans by name, as OpenTelemetry's own protocol buffers read them."""
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.url)
    assert send(["otlp", str(run)]) == 0
    method, path, body = server.got[-1]
    assert (method, path) == ("POST", "/v1/traces")
    (resource,) = ExportTraceServiceRequest.FromString(body).resource_spans
    return {span.name: span for span in resource.scope_spans[0].spans}


def test_a_trace(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = folder(tmp_path / "run", scheduled_as="scheduled__1")
    found = spans(server, run, monkeypatch)
    assert set(found) == {"night", "rows", "text"}
    night, rows = found["night"], found["rows"]
    assert rows.parent_span_id == found["text"].parent_span_id == night.span_id
    assert night.parent_span_id == b"" and len({span.trace_id for span in found.values()}) == 1
    assert night.end_time_unix_nano - night.start_time_unix_nano == (20 * 60 + 30) * 10**9
    assert rows.end_time_unix_nano - rows.start_time_unix_nano == 2_250_000_000
    assert rows.start_time_unix_nano - night.start_time_unix_nano == 1_500_000_000
    attributes = {each.key: each.value for each in rows.attributes}
    assert attributes["stage.rows"].int_value == 7 and attributes["stage.rejected"].int_value == 2
    assert attributes["stage.attempts"].int_value == 2 and night.status.code == 0
    again = spans(server, run, monkeypatch)
    assert {name: span.span_id for name, span in again.items()} == {
        name: span.span_id for name, span in found.items()
    }


def test_a_trace_of_a_run_that_failed(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = folder(tmp_path / "run", status="failed", exit_code=1, error="text: the disk is full")
    status = spans(server, run, monkeypatch)["night"].status
    assert (status.code, status.message) == (2, "text: the disk is full")


@pytest.mark.parametrize("way", ["openlineage", "otlp"])
def test_what_cannot_be_sent_is_told(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openlineage.client")
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    monkeypatch.setenv("OPENLINEAGE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    assert send([way, str(tmp_path / "nothing")]) == 1
    assert send([way, str(folder(tmp_path / "running", ended=None, status="running"))]) == 1
    assert "the run has not ended" in capsys.readouterr().err
    if way == "otlp":
        assert send([way, str(folder(tmp_path / "run"))]) == 1
        assert "the spans could not be sent" in capsys.readouterr().err
