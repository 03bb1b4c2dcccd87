"""A run as a trace of OpenTelemetry: `python -m pipelines.send otlp RUN`.

The run is a span, and every stage that ran is a span inside it, with their own times. Where they go
is said by OpenTelemetry's own environment (`OTEL_EXPORTER_OTLP_ENDPOINT`, over HTTP). The ids are
made of the names, so a run that is sent twice is the same trace.
"""

from __future__ import annotations

import argparse
import hashlib
from datetime import datetime
from typing import TYPE_CHECKING

from pipelines.contracts.runs import RunRecord
from pipelines.contracts.shown import complain, tell
from pipelines.store.runs_dir import run_folder

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

SERVICE = "pipelines"


def export(record: RunRecord, exporter: SpanExporter) -> int:
    """Sends the spans of a run that has ended; returns their number. Raises `RuntimeError` if they
    could not be sent."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import SpanExportResult
    from opentelemetry.sdk.trace.id_generator import IdGenerator
    from opentelemetry.trace import Status, StatusCode, set_span_in_context

    if record.ended is None:
        raise ValueError("the run has not ended")

    class Named(IdGenerator):
        """Ids that are always the same for a run."""

        spans = 0

        def generate_trace_id(self) -> int:
            return int.from_bytes(_hash(record, "", 16), "big")

        def generate_span_id(self) -> int:
            self.spans += 1
            return int.from_bytes(_hash(record, str(self.spans), 8), "big")

    provider = TracerProvider(
        resource=Resource.create({"service.name": SERVICE}),
        id_generator=Named(),
        shutdown_on_exit=False,
    )
    tracer = provider.get_tracer(SERVICE, record.machine.version)
    run = tracer.start_span(
        record.pipeline,
        start_time=_nanoseconds(record.started),
        attributes={
            "pipeline.run": record.run,
            "pipeline.status": record.status,
            "pipeline.exit_code": record.exit_code or 0,
            "pipeline.scheduled_as": record.scheduled_as or "",
        },
    )
    if record.status != "complete":
        run.set_status(Status(StatusCode.ERROR, record.error or record.status))
    spans = []
    for stage, facts in record.stages.items():
        if facts.status != "ran" or facts.started is None:
            continue
        started = _nanoseconds(facts.started)
        span = tracer.start_span(
            stage,
            context=set_span_in_context(run),
            start_time=started,
            attributes={
                "stage.rows": facts.rows,
                "stage.rejected": sum(facts.rejected.values()),
                "stage.attempts": facts.attempts,
                "stage.reason": facts.reason,
                "stage.digest": facts.digest or "",
            },
        )
        span.end(started + round(facts.seconds * 1e9))
        spans.append(span)
    run.end(_nanoseconds(record.ended))
    readable = [span for span in (run, *spans) if isinstance(span, ReadableSpan)]
    if exporter.export(readable) is not SpanExportResult.SUCCESS:
        raise RuntimeError("the spans could not be sent")
    return len(readable)


def _hash(record: RunRecord, name: str, size: int) -> bytes:
    text = f"{record.pipeline}/{record.run}/{name}"
    return hashlib.blake2b(text.encode("utf-8"), digest_size=size).digest()


def _nanoseconds(time: str) -> int:
    return round(datetime.fromisoformat(time).timestamp() * 1e9)


def main(arguments: list[str] | None = None) -> int:
    command = argparse.ArgumentParser(
        prog="python -m pipelines.send otlp",
        description="Sends finished runs as traces to what $OTEL_EXPORTER_OTLP_ENDPOINT names.",
    )
    command.add_argument("runs", type=run_folder, nargs="+", help="run folders, or their URLs")
    options = command.parse_args(arguments)
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        complain("this needs OpenTelemetry: pip install '.[otlp]'")
        return 2
    for folder in options.runs:
        try:
            number = export(RunRecord.read(folder), OTLPSpanExporter())
        except Exception as error:  # its exporter has errors of its own
            complain(f"{folder}: {type(error).__name__}: {error}")
            return 1
        tell(f"{folder}: {number} spans sent")
    return 0
