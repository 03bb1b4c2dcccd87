"""Small files outside the store: what a stage reads of them is what the plan saw."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipelines.running.beam_jobs import BeamJobs
from pipelines.running.events import Events
from pipelines.stage import Context, Stage
from pipelines.store.artifacts import loose_artifact
from pipelines.store.remembered import Memory
from pipelines.store.sources import (
    SourceError,
    SourceFile,
    TooLargeError,
    copy_planned,
    read_planned,
)
from stages.generate.options import GenerateConfig
from stages.generate.stage import Generate
from stages.generate.work import answer_prompts, read_words
from stages.import_model import Import, ImportConfig
from stages.rows.shards import write_table
from stages.score.options import ScoreConfig
from stages.score.stage import Score
from stages.score.systems import system_rows
from stages.text.options import TextConfig
from stages.text.stage import Text
from stages.text.work import side_settings


def system_lines(context: Context) -> Iterator[str]:
    folder = context.base / "predictions"
    table = pl.DataFrame({"task": "t", "split": ["test"] * 3, "hypothesis": ["x"] * 3})
    write_table(table, folder / "rows" / "a.parquet")
    for part in system_rows(loose_artifact(folder), "other", "{task}/lines.txt", context):
        yield from part["hypothesis"]


def answer(context: Context) -> Any:
    class Echo:
        def answer(self, records: list[dict[str, Any]], *_: object) -> list[str]:
            return [str(records[0]["image"])]

    config = GenerateConfig.model_validate({"prompts": [{"image": "lines.txt"}]})
    return answer_prompts(config, Echo(), context)  # type: ignore[arg-type]


LINES = b"one\ntwo\nthree\n"
CASES: dict[str, tuple[Stage[Any], str, Callable[[Context], Any]]] = {
    "stop words": (
        Text(TextConfig(stopwords={"source": "lines.txt"})),
        "lines.txt",
        lambda context: (
            side_settings(
                TextConfig(stopwords={"source": "lines.txt"}), {}, context
            ).source.stopwords
        ),
    ),
    "words": (
        Generate(GenerateConfig.model_validate({"search": {"words": "lines.txt"}})),
        "lines.txt",
        lambda context: read_words(
            GenerateConfig.model_validate({"search": {"words": "lines.txt"}}), context
        ),
    ),
    "prompt": (
        Generate(GenerateConfig.model_validate({"prompts": [{"image": "lines.txt"}]})),
        "lines.txt",
        answer,
    ),
    "system": (
        Score(ScoreConfig(systems={"other": "{task}/lines.txt"})),
        "t/lines.txt",
        lambda context: list(system_lines(context)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_file_that_changes_and_changes_back_is_noticed(name: str, tmp_path: Path) -> None:
    """The engine's own look after the stage would find the file as it was."""
    stage, file, read = CASES[name]
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_bytes(LINES)
    planned = dict(Memory(tmp_path / "store").digests(stage.outside(tmp_path), ""))
    assert len(planned) == 1
    events = Events(None)
    context = Context(
        "s", 0, tmp_path, tmp_path, tmp_path, 1, events, BeamJobs({}, events), outside=planned
    )
    assert "two" in str(read(context))
    (tmp_path / file).write_bytes(LINES.replace(b"two", b"2"))
    with pytest.raises(SourceError, match=r"lines\.txt has changed since it was read for the plan"):
        read(context)


def test_a_checkpoint_that_changes_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "README.md").write_text("not read")
    stage = Import(ImportConfig(folder="checkpoint"))
    planned = dict(Memory(tmp_path / "store").digests(stage.outside(tmp_path), ""))
    events, scratch = Events(None), tmp_path / "scratch"
    scratch.mkdir()
    context = Context(
        "s", 0, tmp_path, tmp_path, scratch, 1, events, BeamJobs({}, events), outside=planned
    )
    with pytest.raises(ValueError, match=r"^checkpoint/config\.json: model_type is 'bert'"):
        stage.run(context, {})
    (folder / "config.json").write_text('{"model_type": "marian"}')
    with pytest.raises(SourceError, match=r"checkpoint/config\.json has changed since"):
        stage.run(context, {})


def test_two_files_of_a_system_with_the_same_name_are_both_planned(tmp_path: Path) -> None:
    for task in ("a", "b"):
        (tmp_path / task).mkdir()
        (tmp_path / task / "lines.txt").write_text(task)
    stage = Score(ScoreConfig(systems={"other": "{task}/lines.txt"}))
    names = [name for name, _ in stage.outside(tmp_path)]
    assert names == ["system other: a/lines.txt", "system other: b/lines.txt"]


def test_reading_what_was_planned(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert read_planned("a", tmp_path, {}, 3) == b"abc"
    with pytest.raises(TooLargeError, match="more than 2 bytes"):
        read_planned("a", tmp_path, {}, 2)
    with pytest.raises(ValueError, match="'b' matches no file"):
        read_planned("b", tmp_path, {}, 2)
    file = SourceFile("a", str(tmp_path / "a"))
    copy_planned(file, tmp_path / "copy", {})
    assert (tmp_path / "copy").read_bytes() == b"abc"
    with pytest.raises(SourceError, match="a has changed"):
        copy_planned(file, tmp_path / "copy", {"a": "0" * 64})
