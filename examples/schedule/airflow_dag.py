"""A DAG for Airflow 3: put it into the DAG folder.

Every date has its own run, so `airflow backfill create --dag-id gemini --from-date 2026-11-01
--to-date 2026-11-07 --max-active-runs 1` makes up for nights that are missing. The exit codes say
what Airflow should do: after 2 and 3, the pipeline file or the scores are bad, it fails without
another try, which would end the same; after all others, 75 for another run that is in progress
among them, it tries again.
"""

from __future__ import annotations

import subprocess
from datetime import datetime, timedelta
from typing import Any

from airflow.sdk import dag, task
from airflow.sdk.exceptions import AirflowFailException

HOME = "/srv/pipelines"


@task(retries=2, retry_delay=timedelta(minutes=10), execution_timeout=timedelta(hours=6))
def run(**context: Any) -> None:
    """One night; the run takes its name from Airflow."""
    date = context["logical_date"] or context["dag_run"].run_after
    command = [
        *(".venv/bin/python", "-m", "pipelines.run", "pipeline.yaml"),
        *("--set", f"variables.date={date:%Y-%m-%d}", "--run-id", context["run_id"]),
        *("--wait", "3600"),
    ]
    process = subprocess.Popen(command, cwd=HOME)
    try:
        code = process.wait()
    except BaseException:  # the time is over, or somebody stopped the task
        process.terminate()
        try:
            process.wait(120)
        except subprocess.TimeoutExpired:
            process.kill()
        raise
    if code in (2, 3):
        raise AirflowFailException(f"exit code {code}: see the report in {HOME}/runs")
    if code:
        raise RuntimeError(f"exit code {code}")


@dag(
    dag_id="gemini",
    schedule="30 2 * * *",
    start_date=datetime(2026, 11, 1),
    catchup=False,
    max_active_runs=1,
    tags=["pipelines"],
)
def gemini() -> None:
    run()


gemini()
