"""What the scheduler that started a run calls it."""

from __future__ import annotations

import os
from collections.abc import Mapping

LONGEST = 250
"""Characters of a name."""
VARIABLES = (
    ("AIRFLOW_CTX_DAG_RUN_ID", "AIRFLOW_CTX_TRY_NUMBER"),
    ("ARGO_NODE_ID", ""),
    ("GITHUB_RUN_ID", "GITHUB_RUN_ATTEMPT"),
    ("INVOCATION_ID", ""),
)
"""Where Airflow, Argo Workflows, GitHub Actions and systemd put the name of a run, and the number
of the attempt at it."""


def name_of_run(environment: Mapping[str, str] = os.environ) -> str | None:
    """The name under which the scheduler knows this run; None if there is no scheduler that says
    so. A further attempt has its number: `scheduled__2026-11-30, attempt 2`."""
    for variable, attempt in VARIABLES:
        name = environment.get(variable, "").strip()
        if name:
            number = environment.get(attempt, "1")
            again = f", attempt {number}" if number.isdecimal() and int(number) > 1 else ""
            return f"{name[:LONGEST]}{again}"
    return None
