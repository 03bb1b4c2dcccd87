"""What stages gather from pieces of work: all rejects, and samples of rows."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from pipelines.running.beam_jobs import BeamJobs
from pipelines.running.events import Events
from pipelines.stage import Context
from pipelines.store.artifacts import loose_artifact
from stages.rows.rejects import Reject, read_rejects, write_rejects
from stages.rows.shards import first_rows, write_table


def rejects() -> list[Reject]:
    return [
        Reject(position=f"a.tsv:{n}", stage="s", reason=f"r{n % 2}", id=str(n)) for n in range(40)
    ]


@pytest.mark.parametrize("shards", [1, 3, 100])
def test_rejects_are_all_there_whatever_their_shards(tmp_path: Path, shards: int) -> None:
    events = Events(None)
    output, scratch = tmp_path / "o", tmp_path / "s"
    output.mkdir()
    scratch.mkdir()
    context = Context("s", 0, tmp_path, output, scratch, 1, events, BeamJobs({}, events))
    assert write_rejects(rejects(), context, shards) == {"r0": 20, "r1": 20}
    assert len(list(output.glob("rejected/*.parquet"))) == shards
    read = pl.concat(read_rejects(loose_artifact(output)))
    assert sorted(read["position"]) == sorted(reject.position for reject in rejects())


@pytest.mark.parametrize("count", [0, 1, 3, 100])
def test_first_rows_of_every_kind(tmp_path: Path, count: int) -> None:
    rows = [{"id": f"{n * 7 % 60:02d}", "task": "ab"[n % 2], "n": n} for n in range(60)]
    table = pl.DataFrame(rows)
    for number in range(4):
        part = table.gather_every(4, number)
        part = part if number else part.with_columns(more=pl.lit("x"))
        write_table(part, tmp_path / "rows" / f"{number}.parquet")
    found = first_rows(loose_artifact(tmp_path), ["task"], count)
    expected = table.sort("id").filter(pl.int_range(pl.len()).over("task") < count)
    assert found.select("id", "task", "n").rows() == expected.rows()


def test_a_report_has_a_score_for_every_sentence(finished: tuple[Path, Path]) -> None:
    _, runs = finished
    record = json.loads((runs / "small" / "latest" / "run.json").read_text())
    report = runs / record["stages"]["report"]["artifact"]
    sentences = json.loads((report / "sentences.json").read_text())
    assert sentences["rows"] and all(row["score"] is not None for row in sentences["rows"])
    places = [(row["task"], row["split"], row["id"]) for row in sentences["rows"]]
    assert places == sorted(places)
    shown = [
        (row["task"], row["split"], row["modalities"], row["id"])
        for row in json.loads((report / "content.json").read_text())["examples"]
    ]
    assert shown and shown == sorted(shown)
