"""The files in examples/schedule and the Dockerfile, each checked by its own tool."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipelines.run import parser


def tool(name: str) -> str:
    """The path of a program, beside this Python or on the machine; skips without it."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def said(*command: str | Path) -> tuple[int, str]:
    """Exit code, and everything that was printed."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def schedule(root: Path) -> Path:
    return root / "examples" / "schedule"


def changed(path: Path, folder: Path, old: str, new: str) -> Path:
    """A copy of a file with something wrong in it."""
    text = path.read_text(encoding="utf-8")
    assert old in text
    copy = folder / path.name
    copy.write_text(text.replace(old, new), encoding="utf-8")
    return copy


def test_the_line_for_cron(schedule: Path, tmp_path: Path) -> None:
    check = [tool("checkcrontab"), "-n", "-S"]
    code, text = said(*check, schedule / "crontab")
    assert code == 0 and "No errors" in text, text
    code, text = said(*check, changed(schedule / "crontab", tmp_path, "30 2 * * *", "61 2 * * *"))
    assert code != 0, text


def test_the_unit_and_the_timer_for_systemd(schedule: Path, tmp_path: Path) -> None:
    check = [tool("systemd-analyze"), "verify"]
    for name in ("pipelines.service", "pipelines.timer"):
        shutil.copy(schedule / name, tmp_path)
    code, text = said(*check, tmp_path / "pipelines.service", tmp_path / "pipelines.timer")
    assert (code, text) == (0, "")
    # An unknown key is no error for it, but it says so.
    wrong = changed(schedule / "pipelines.service", tmp_path, "WatchdogSec", "WatchDogSec")
    assert "Unknown key" in said(*check, wrong)[1]


def test_the_job_for_kubernetes(schedule: Path, tmp_path: Path) -> None:
    check = [tool("kubernetes-validate"), "--strict"]
    code, text = said(*check, schedule / "kubernetes.yaml")
    assert code == 0, text
    wrong = changed(schedule / "kubernetes.yaml", tmp_path, "backoffLimit", "backofLimit")
    assert said(*check, wrong)[0] != 0


def test_the_workflow_for_github(schedule: Path, tmp_path: Path) -> None:
    check = [tool("check-jsonschema"), "--builtin-schema", "vendor.github-workflows"]
    code, text = said(*check, schedule / "github-workflow.yaml")
    assert code == 0, text
    wrong = changed(schedule / "github-workflow.yaml", tmp_path, "timeout-minutes", "timeout-mins")
    assert said(*check, wrong)[0] != 0


def test_the_workflow_for_github_and_its_expressions(schedule: Path, tmp_path: Path) -> None:
    check = tool("actionlint")
    code, text = said(check, schedule / "github-workflow.yaml")
    assert code == 0, text


DAG = """\
import datetime, json, subprocess, sys
from airflow.dag_processing.dagbag import DagBag
folder, code = sys.argv[1:]
bag = DagBag(folder)
(task,) = bag.dags["gemini"].tasks
started = []
def start(command, cwd, popen=subprocess.Popen):
    started.append([cwd, *command])
    return popen([sys.executable, "-c", f"raise SystemExit({code})"])
subprocess.Popen = start
try:
    task.python_callable(logical_date=datetime.datetime(2026, 11, 30), run_id="scheduled__1")
    ended = "well"
except BaseException as error:
    ended = type(error).__name__
print(json.dumps([bag.import_errors, list(bag.dags), task.retries, started, ended]))
"""


@pytest.mark.parametrize(
    ("code", "ended"),
    [
        (0, "well"),
        (1, "RuntimeError"),
        (2, "AirflowFailException"),
        (3, "AirflowFailException"),
        (75, "RuntimeError"),
    ],
)
def test_the_dag_for_airflow(schedule: Path, tmp_path: Path, code: int, ended: str) -> None:
    """Airflow reads it, and what a run's exit code makes of the task. Airflow is large, so it may
    stand in an environment of its own: AIRFLOW_PYTHON=path of its Python."""
    python = os.environ.get("AIRFLOW_PYTHON", sys.executable)
    environment = {
        **os.environ, "AIRFLOW_HOME": str(tmp_path), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"
    }  # fmt: skip
    if subprocess.run(
        [python, "-c", "import airflow"], capture_output=True, env=environment
    ).returncode:
        pytest.skip("apache-airflow is not installed (AIRFLOW_PYTHON=path of a Python that has it)")
    done = subprocess.run(
        [python, "-c", DAG, str(schedule), str(code)],
        capture_output=True, text=True, timeout=120, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    errors, dags, retries, (started,), how = json.loads(done.stdout.splitlines()[-1])
    assert (errors, dags, retries, how) == ({}, ["gemini"], 2, ended)
    assert started[0] == "/srv/pipelines" and started[2:4] == ["-m", "pipelines.run"]
    options = parser().parse_args(started[4:])
    assert options.set == ["variables.date=2026-11-30"] and options.run_id == "scheduled__1"


def test_the_image(root: Path) -> None:
    code, text = said(tool("hadolint"), root / "Dockerfile")
    assert code == 0, text


def test_the_image_has_what_it_needs(root: Path) -> None:
    """What is copied is there, the base is the Beam that is pinned, and a command that begins with
    two dashes goes to Beam's boot program."""
    lines = re.sub(r"\\\n", "", (root / "Dockerfile").read_text(encoding="utf-8")).splitlines()
    words = {word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]}
    assert words >= {"pipelines", "stages", "model", "exports"}
    assert all((root / word).exists() for word in words)
    allowed = (root / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {f"!{word}" for word in words} <= set(allowed)
    (base,) = [line for line in lines if line.startswith("FROM")]
    pinned = (root / "requirements.txt").read_text(encoding="utf-8")
    assert f"apache-beam=={base.rpartition(':')[2]}\n" in pinned
    (entry,) = [line for line in lines if line.startswith("ENTRYPOINT")]
    command = json.loads(entry.removeprefix("ENTRYPOINT"))
    replaced = [word.replace("/opt/apache/beam/boot", "echo boot") for word in command]
    run = [*replaced, "--id=1", "--worker_pool"]
    assert subprocess.check_output(run, text=True) == "boot --id=1 --worker_pool\n"
    assert subprocess.check_output([*replaced, "echo", "a b"], text=True) == "a b\n"


def commands(schedule: Path) -> dict[str, str]:
    """What each file says after `pipelines.run`, up to the end of the command."""
    jobs = yaml.safe_load((schedule / "kubernetes.yaml").read_text(encoding="utf-8"))
    containers = jobs["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    texts = {
        "crontab": (schedule / "crontab").read_text(encoding="utf-8"),
        "pipelines.service": (schedule / "pipelines.service").read_text(encoding="utf-8"),
        "kubernetes.yaml": containers[0]["args"][0],
        "github-workflow.yaml": (schedule / "github-workflow.yaml")
        .read_text(encoding="utf-8")
        .replace("\\\n", " "),
    }
    found = {}
    for name, text in texts.items():
        match = re.search(r"-m pipelines\.run (.*?)(?:>|'\n|\n|$)", text)
        assert match, name
        found[name] = re.sub(r"\$+\([^)]*\)", "2026-11-30", match[1])  # the shell knows the date
    return found


def test_the_command_line_takes_what_the_files_say(schedule: Path) -> None:
    for name, text in commands(schedule).items():
        options = parser().parse_args(shlex.split(text))
        assert options.pipeline.name == "pipeline.yaml", name
        assert any(setting.startswith("variables.date=") for setting in options.set), name
