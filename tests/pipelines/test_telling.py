"""Who is told how a run went: programs, servers, Prometheus, systemd."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError

from pipelines.contracts.runs import GateOutcome, Machine, RunRecord, StageRecord
from pipelines.contracts.scores import Score
from pipelines.running.record import name_of_run
from pipelines.telling import notices
from pipelines.telling.metrics import publish
from pipelines.telling.notices import event_of, send, sentence_of
from pipelines.telling.options import MetricsConfig, NoticeConfig, from_environment
from pipelines.telling.systemd import notify, watchdog_seconds

if TYPE_CHECKING:
    from tests.pipelines.conftest import Server


def record(status: str = "complete", run: str = "r1", **facts: Any) -> RunRecord:
    return RunRecord(
        pipeline="night",
        run=run,
        started="2026-11-30T01:00:00+00:00",
        ended="2026-11-30T01:20:30+00:00",
        status=status,
        exit_code={"complete": 0, "gate failed": 3}.get(status, 1),
        seed=1,
        machine=Machine(platform="", cpus=1, python="", version=""),
        **facts,
    )


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "LONGEST_WAIT", 0.05)


@pytest.mark.parametrize(
    ("before", "after", "event"),
    [
        (None, "complete", "success"),
        ("complete", "complete", "success"),
        ("gate failed", "complete", "recovery"),
        ("failed", "complete", "recovery"),
        ("stopped", "complete", "recovery"),
        ("complete", "gate failed", "gate"),
        ("complete", "failed", "failure"),
        ("failed", "stopped", "failure"),
    ],
)
def test_what_is_told(before: str | None, after: str, event: str) -> None:
    assert event_of(record(after), record(before) if before else None) == event


def test_a_command_gets_the_run_on_its_input(tmp_path: Path) -> None:
    program = (
        "import json, os, sys; told = json.load(sys.stdin); "
        "told['environment'] = {k: v for k, v in os.environ.items() if k.startswith('PIPELINE_')}; "
        "json.dump(told, open('told.json', 'w'))"
    )
    notice = NoticeConfig(command=[sys.executable, "-c", program])
    problems: list[str] = []
    ended = record("failed", error="train: the disk is full", stages={})
    folder = tmp_path / "runs" / "night" / "r1"
    assert send([notice], "failure", ended, folder, tmp_path, problems.append) == ["command"]
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["event"] == "failure" and told["run"] == ended.to_json()
    assert told["text"] == "night r1 failed: train: the disk is full"
    assert told["environment"] == {
        "PIPELINE_EVENT": "failure", "PIPELINE_RUN": str(folder), "PIPELINE_TEXT": told["text"]
    }  # fmt: skip
    assert not problems
    assert send([notice], "success", ended, folder, tmp_path, problems.append) == []


def test_a_webhook_is_tried_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.refuse = 2
    monkeypatch.setenv("CHAT", f"{server.url}/secret-path")
    notice = NoticeConfig(webhook="$CHAT", when="always")
    problems: list[str] = []
    gate = GateOutcome(gate="bleu >= 10", passed=False, message="bleu >= 10: FAILED with 3")
    ended = record("gate failed", gates=(gate,))
    assert send([notice], "gate", ended, tmp_path, tmp_path, problems.append) == ["webhook"]
    assert len(server.got) == 3 and not problems
    method, path, body = server.got[-1]
    told = json.loads(body)
    assert (method, path, told["event"]) == ("POST", "/secret-path", "gate")
    assert told["text"] == "night r1: bleu >= 10: FAILED with 3"


def test_what_cannot_be_told_is_said_without_the_secret(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.refuse = 100
    monkeypatch.setenv("CHAT", f"{server.url}/secret-path")
    monkeypatch.setenv("ODD", "no url, and secret-path")
    monkeypatch.setenv("USER_AND_PASSWORD", "http://bot:secret-path@127.0.0.1/hook")
    monkeypatch.setenv("SPACED", "http://127.0.0.1/secret-path hook")
    ways = [
        NoticeConfig(webhook="$CHAT", when="late"),
        NoticeConfig(webhook="$UNSET_THING", when=["late"]),
        NoticeConfig(webhook="$ODD", when=["late"]),
        NoticeConfig(webhook="$USER_AND_PASSWORD", when=["late"]),
        NoticeConfig(webhook="$SPACED", when=["late"]),
        NoticeConfig(apprise="nothing://secret-path", when="late"),
        NoticeConfig(command=["no-such-program"], when="late"),
        NoticeConfig(
            command=[sys.executable, "-c", "import sys; sys.exit('no mail today')"], when="late"
        ),
    ]
    problems: list[str] = []
    assert send(ways, "late", record(), tmp_path, tmp_path, problems.append) == []
    assert len(problems) == len(ways)
    assert not any("secret-path" in problem for problem in problems), problems
    assert "503" in problems[0] and "no variable UNSET_THING" in problems[1]
    assert "no-such-program" in problems[6] and "no mail today" in problems[7]
    assert len(server.got) == notices.TRIES


def test_a_server_that_sends_elsewhere_was_not_told(server: Server, tmp_path: Path) -> None:
    server.elsewhere = True
    problems: list[str] = []
    notice = NoticeConfig(webhook=server.url, when="always")
    assert send([notice], "gate", record(), tmp_path, tmp_path, problems.append) == []
    assert "the server said 302" in problems[0]


def test_a_command_is_told_of_long_and_odd_errors(tmp_path: Path) -> None:
    program = "import json, sys; open('told', 'w').write(json.load(sys.stdin)['text'])"
    notice = NoticeConfig(command=[sys.executable, "-c", program])
    ended = record("failed", error="a\0b" + "x" * 300_000)
    assert send([notice], "failure", ended, tmp_path, tmp_path, pytest.fail) == ["command"]
    assert len((tmp_path / "told").read_text()) > 300_000


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of modules that Apprise imports
def test_apprise_sends(server: Server, tmp_path: Path) -> None:
    """The extra `notify`; Apprise's own plug-in for JSON is the reference of what arrives."""
    pytest.importorskip("apprise")
    notice = NoticeConfig(apprise=server.url.replace("http", "json") + "/a", when="always")
    problems: list[str] = []
    told = send([notice], "recovery", record(), tmp_path, tmp_path, problems.append)
    assert (told, problems) == (["apprise"], [])
    body = json.loads(server.got[-1][2])
    assert body["type"] == "success" and "night r1 is complete again" in body["message"]


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"command": ["a"], "webhook": "https://b"},
        {"command": []},
        {"webhook": "ftp://b"},
        {"command": ["a"], "when": ["sometimes"]},
        {"command": ["a"], "when": []},
        {"command": ["a"], "on": "failure"},
    ],
)
def test_wrong_notices_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        NoticeConfig.model_validate(wrong)


def test_only_a_whole_name_is_taken_from_the_environment() -> None:
    assert from_environment("$A", {"A": "b"}) == "b"
    assert from_environment("https://x/$A", {"A": "b"}) == "https://x/$A"
    with pytest.raises(ValueError, match="no variable A"):
        from_environment("$A", {})


def test_every_event_has_a_sentence() -> None:
    assert "takes longer" in sentence_of("late", record())
    assert sentence_of("failure", record("stopped")) == "night r1 stopped: it was told to stop"
    assert sentence_of("success", record()) == "night r1 is complete"


def values(text: str) -> dict[str, float]:
    """Samples as Prometheus's own parser reads them, by name and what their labels say, in the
    order of the labels' names and without `pipeline`."""
    read = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = [value for name, value in sorted(sample.labels.items()) if name != "pipeline"]
            read[" ".join([sample.name, *labels])] = sample.value
    return read


def test_metrics(server: Server, tmp_path: Path) -> None:
    score = Score(
        task="t", split="test", slice=None, metric="bleu", value=12.5, signature="s", n=3, ci95=None
    )
    ended = record(
        "gate failed",
        "r3",
        stages={
            "rows": StageRecord(
                status="ran", reason="", seconds=2.5, rows=7, rejected={"a": 1, "b": 2}, attempts=2
            ),
            "train": StageRecord(status="skipped", reason=""),
        },
        scores=(score, score.model_copy(update={"slice": {"corpus": "x"}})),
        gates=(GateOutcome(gate='say "hi" \\', passed=False, message=""),),
    )
    good = record(run="r1").model_copy(update={"ended": "2026-11-28T00:00:00+00:00"})
    metrics = MetricsConfig(file="out/night.prom", pushgateway=server.url)
    problems: list[str] = []
    publish(metrics, ended, [record("failed", "r2"), good], tmp_path, problems.append)
    assert not problems
    path = tmp_path / "out" / "night.prom"
    read = values(path.read_text())
    assert read["pipeline_last_success_timestamp_seconds"] == 1795824000
    assert read["pipeline_run_timestamp_seconds"] == 1796001630
    assert read["pipeline_run_duration_seconds"] == 20 * 60 + 30
    assert read["pipeline_run_exit_code"] == 3 and read["pipeline_run_late"] == 0
    assert read["pipeline_stage_seconds rows"] == 2.5 and read["pipeline_stage_rows rows"] == 7
    assert read["pipeline_stage_rejected_rows rows"] == 3
    assert read["pipeline_stage_attempts rows"] == 2
    assert not any("train" in name for name in read)
    assert read["pipeline_score bleu test t"] == 12.5
    assert read['pipeline_gate_passed say "hi" \\'] == 0
    assert path.stat().st_mode & 0o777 == 0o644
    assert sorted(path.parent.iterdir()) == [path], "nothing half-written beside it"
    method, place, body = server.got[-1]
    assert method == "PUT" and place == "/metrics/job/pipelines/pipeline/night"
    assert values(body.decode()) == read


def test_what_cannot_be_published_is_said_without_the_secret(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that cannot be written does not keep the numbers from the Pushgateway."""
    (tmp_path / "a.prom").mkdir()
    problems: list[str] = []
    metrics = MetricsConfig(file="a.prom", pushgateway=server.url)
    publish(metrics, record(), [], tmp_path, problems.append)
    assert len(server.got) == 1 and len(problems) == 1 and "a.prom" in problems[0]
    for url in ("http://user:s3cret@host/a", "http://127.0.0.1:9/s3cret", "s3cret thing", ""):
        monkeypatch.setenv("GATEWAY", url)
        problems.clear()
        publish(MetricsConfig(pushgateway="$GATEWAY"), record(), [], tmp_path, problems.append)
        assert len(problems) == 1 and "s3cret" not in problems[0]


def test_without_a_good_run_there_is_no_last_success(tmp_path: Path) -> None:
    publish(MetricsConfig(file="a.prom"), record("failed"), [], tmp_path, pytest.fail)
    assert "pipeline_last_success_timestamp_seconds" not in values(
        (tmp_path / "a.prom").read_text()
    )


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told(tmp_path: Path, abstract: bool) -> None:
    if abstract and sys.platform != "linux":
        pytest.skip("abstract sockets are Linux's")
    name = f"@pipelines-{os.getpid()}" if abstract else str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("\0" + name[1:] if abstract else name)
        assert notify("READY=1", "STATUS=训练", environment={"NOTIFY_SOCKET": name})
        assert listening.recv(100).decode() == "READY=1\nSTATUS=训练"
    assert not notify("READY=1", environment={"NOTIFY_SOCKET": name}), "nobody listens any more"
    assert not notify("READY=1", environment={})


def test_the_watchdog_of_this_process() -> None:
    own = str(os.getpid())
    assert watchdog_seconds({"WATCHDOG_USEC": "3000000"}) == 3
    assert watchdog_seconds({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": own}) == 3
    assert watchdog_seconds({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": own + "1"}) is None
    assert watchdog_seconds({}) is None and watchdog_seconds({"WATCHDOG_USEC": "x"}) is None


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({}, None),
        ({"AIRFLOW_CTX_DAG_RUN_ID": "scheduled__2026-11-30"}, "scheduled__2026-11-30"),
        ({"AIRFLOW_CTX_DAG_RUN_ID": "a", "AIRFLOW_CTX_TRY_NUMBER": "2"}, "a, attempt 2"),
        ({"GITHUB_RUN_ID": "77", "GITHUB_RUN_ATTEMPT": "1"}, "77"),
        ({"GITHUB_RUN_ID": "77", "GITHUB_RUN_ATTEMPT": "3"}, "77, attempt 3"),
        ({"ARGO_NODE_ID": "nightly-abc-1"}, "nightly-abc-1"),
        ({"INVOCATION_ID": "0123", "ARGO_NODE_ID": ""}, "0123"),
    ],
)
def test_the_scheduler_s_name(environment: dict[str, str], name: str | None) -> None:
    assert name_of_run(environment) == name
