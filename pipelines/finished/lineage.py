"""A run as events of OpenLineage: `python -m pipelines.send openlineage RUN`.

Where they go is said by OpenLineage's own configuration (`OPENLINEAGE_URL`, `openlineage.yml`).
The run, and each stage that ran in it, has one event for its start and one for its end; the ids
are made of the names, so a run that is sent twice is the same run. See
https://openlineage.io/docs/spec/object-model.
"""

from __future__ import annotations

import argparse
import re
import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from pipelines.contracts.runs import RunRecord, StageRecord
from pipelines.contracts.shown import complain, tell
from pipelines.store.runs_dir import run_folder

if TYPE_CHECKING:
    from openlineage.client.event_v2 import Dataset, RunEvent

PRODUCER = "https://pypi.org/project/gemini-pipelines"
NAMESPACE = "pipelines"
UPSTREAM = re.compile(r".* \(from (.+)\)")
"""How the parts of a fingerprint name an input that another stage made."""


def events(record: RunRecord, namespace: str = NAMESPACE) -> Iterator[RunEvent]:
    """The events of a run that has ended, in the order of their times but for ends of stages.

    Args:
        namespace: of the jobs, and of the results that stages made.
    """
    from openlineage.client.event_v2 import Job, Run, RunEvent, RunState
    from openlineage.client.generated import error_message_run, parent_run

    if record.ended is None:
        raise ValueError("the run has not ended")
    whole = _id(record, "")
    facets: dict[str, Any] = {}
    if record.error:
        facets["errorMessage"] = error_message_run.ErrorMessageRunFacet(
            message=record.error, programmingLanguage="python"
        )
    end = {"complete": RunState.COMPLETE, "stopped": RunState.ABORT}.get(
        record.status, RunState.FAIL
    )

    def event(state: Any, time: str, run: Run, job: str, **data: Any) -> RunEvent:
        return RunEvent(
            eventTime=time,
            run=run,
            job=Job(namespace, job),
            eventType=state,
            producer=PRODUCER,
            **data,
        )

    yield event(RunState.START, record.started, Run(whole), record.pipeline)
    for stage, facts in record.stages.items():
        if facts.status != "ran" or facts.started is None:
            continue
        parent = parent_run.ParentRunFacet(
            run=parent_run.Run(whole), job=parent_run.Job(namespace, record.pipeline)
        )
        run = Run(_id(record, stage), facets={"parent": parent})
        job = f"{record.pipeline}.{stage}"
        data = {
            "inputs": list(_inputs(record, facts, namespace)),
            "outputs": [_output(record, stage, facts, namespace)],
        }
        yield event(RunState.START, facts.started, run, job, **data)
        ended = datetime.fromisoformat(facts.started) + timedelta(seconds=facts.seconds)
        yield event(RunState.COMPLETE, ended.isoformat(), run, job, **data)
    yield event(end, record.ended, Run(whole, facets=facets), record.pipeline)


def _id(record: RunRecord, stage: str) -> str:
    name = f"{PRODUCER}/{record.pipeline}/{record.run}/{stage}"
    return str(uuid.uuid5(uuid.NAMESPACE_URL, name))


def _inputs(record: RunRecord, facts: StageRecord, namespace: str) -> Iterator[Dataset]:
    from openlineage.client.event_v2 import InputDataset

    seen = set()
    for name, digest in facts.parts.get("INPUT", {}).items():
        upstream = UPSTREAM.fullmatch(name)
        where = (namespace, f"{record.pipeline}.{upstream[1]}") if upstream else _outside(name)
        if where not in seen:
            seen.add(where)
            yield InputDataset(*where, facets=_version(str(digest)))


def _output(record: RunRecord, stage: str, facts: StageRecord, namespace: str) -> Dataset:
    from openlineage.client.event_v2 import OutputDataset
    from openlineage.client.generated import output_statistics_output_dataset as statistics

    return OutputDataset(
        namespace,
        f"{record.pipeline}.{stage}",
        facets=_version(facts.digest or ""),
        outputFacets={
            "outputStatistics": statistics.OutputStatisticsOutputDatasetFacet(rowCount=facts.rows)
        },
    )


def _version(digest: str) -> dict[str, Any]:
    from openlineage.client.generated import dataset_version_dataset

    return {"version": dataset_version_dataset.DatasetVersionDatasetFacet(digest)}


def _outside(name: str) -> tuple[str, str]:
    """Namespace and name of a source, as OpenLineage's naming has them: s3://bucket and the key."""
    scheme, separator, rest = name.partition("://")
    if not separator:
        return "file", name
    place, _, path = rest.partition("/")
    return f"{scheme}://{place}", path or "/"


def main(arguments: list[str] | None = None) -> int:
    command = argparse.ArgumentParser(
        prog="python -m pipelines.send openlineage",
        description="Sends finished runs to what OpenLineage's configuration names.",
    )
    command.add_argument("runs", type=run_folder, nargs="+", help="run folders, or their URLs")
    command.add_argument("--namespace", default=NAMESPACE, help="default: %(default)s")
    options = command.parse_args(arguments)
    try:
        from openlineage.client import OpenLineageClient
    except ImportError:
        complain("this needs OpenLineage's client: pip install '.[openlineage]'")
        return 2
    client = OpenLineageClient()
    for folder in options.runs:
        try:
            listed = list(events(RunRecord.read(folder), options.namespace))
            for event in listed:
                client.emit(event)
        except Exception as error:  # each of its ways of sending has errors of its own
            complain(f"{folder}: {type(error).__name__}: {error}")
            return 1
        tell(f"{folder}: {len(listed)} events sent")
    return 0
