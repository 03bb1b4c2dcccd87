"""The pipeline file: every mistake is found at once, with its line and what to write instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.reading.document import SpecError
from pipelines.reading.spec import load_pipeline

GOOD = """\
name: good
stages:
  rows: {use: ingest, source: a.tsv, columns: {text: 1, target: 2}}
  text: {records: rows}
  train:
    features: text
    model: {use: transformer, layers: 1}
    steps: 10
"""


def write(folder: Path, text: str, name: str = "p.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def problems(folder: Path, text: str, *settings: str) -> list[tuple[int | None, str]]:
    with pytest.raises(SpecError) as caught:
        load_pipeline(write(folder, text), settings)
    return [(problem.place.line, problem.message) for problem in caught.value.problems]


def test_good_file_is_typed(tmp_path: Path) -> None:
    spec = load_pipeline(write(tmp_path, GOOD))
    assert list(spec.stages) == ["rows", "text", "train"]
    assert spec.stages["train"].stage.config.model.layers == 1
    assert spec.stages["train"].upstream == ("text",)


def test_all_errors_at_once_with_lines_and_suggestions(tmp_path: Path) -> None:
    reported = problems(
        tmp_path,
        """\
name: bad
sed: 1
stages:
  rows: {use: ingest, source: a.tsv, columns: {text: 1, target: 2}, shard: 3}
  text:
    records: row
    vocabulary:
      sise: 100
  train:
    use: trainn
  again:
    use: train
    features: rows
    model: {use: transformer, layer: 2}
    steps: many
""",
    )
    lines = dict(reported)
    assert len(reported) == 8
    assert "unknown key 'sed'; did you mean \"seed\"?" in lines[2]
    assert 'rows.shard: unknown option; did you mean "shards"?' in lines[4]
    assert "there is no stage 'row'; did you mean \"rows\"?" in lines[6]
    assert "text.vocabulary.sise: unknown option" in lines[8]
    assert "unknown stage 'trainn'; did you mean \"train\"?" in lines[10]
    assert "takes features, but stage 'rows' makes records; text would fit" in lines[13]
    assert 'again.model.layer: unknown option; did you mean "layers"?' in lines[14]
    assert "again.steps: input should be a valid integer" in lines[15]


def test_missing_input_names_what_would_fit(tmp_path: Path) -> None:
    ((line, message),) = problems(tmp_path, GOOD.replace("text: {records: rows}", "text: {}"))
    assert line == 4
    assert message == (
        "text: needs the input records: (it takes records; stages of that kind: rows)"
    )


def test_circle_is_shown(tmp_path: Path) -> None:
    text = """\
name: circle
stages:
  a: {use: tests_circle:Step, input: b}
  b: {use: tests_circle:Step, input: a}
"""
    write(
        tmp_path,
        "from pipelines.stage import Input, Stage\n"
        "class Step(Stage):\n"
        "    inputs = {'input': Input('thing', '')}\n"
        "    output = 'thing'\n"
        "    def run(self, context, inputs):\n        return None\n",
        "tests_circle.py",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        ((line, message),) = problems(tmp_path, text)
    assert line in (3, 4)
    assert "in a cycle: " in message


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("name: x\nname: y\nstages: {a: {use: text}}\n", 2, "'name' is written twice"),
        ("name: x\nstages: [\n", 3, "is not valid YAML"),
        ("- a\n", 1, "must be a mapping"),
        ("name: x\nstages: {a: ${b}}\n", 2, "write ${…} in quotes"),
        ("name: x\n", 1, "stages: must be a mapping"),
        ("name: x\nstages:\n  seed: {use: text}\n", 3, "'seed' cannot be the name of a stage"),
        ("name: x\nstages:\n  a: {use: 'nowhere.at_all:Thing'}\n", 3, "cannot import"),
        ("name: x\nstages:\n  a: {use: 'json:dumps'}\n", 3, "is not a subclass"),
        ("name: x\nstages:\n  a: {use: 'pipelines.stage:Stage'}\n", 3, "does not define run"),
        ("name: x\nseed: soon\nstages:\n  a: {use: 'json:dumps'}\n", 2, "seed: must be a whole"),
    ],
)
def test_structure_errors(tmp_path: Path, text: str, line: int, message: str) -> None:
    reported = problems(tmp_path, text)
    assert any(number == line and message in problem for number, problem in reported), reported


def test_gates_are_checked(tmp_path: Path) -> None:
    ((line, message),) = problems(tmp_path, GOOD + "gates:\n  - bleu => 10\n")
    assert line == 10
    assert "write one as bleu >= 10" in message


def test_what_the_engine_is_told_of_stages_and_of_people(tmp_path: Path) -> None:
    told = (
        "retries: 2\ntimeout: 90m\nexpected: 2h\n"
        "notify:\n  - {webhook: $CHAT}\n  - {when: always, command: [sh, tell.sh]}\n"
        "metrics: {file: a.prom}\n"
    )
    text = GOOD.replace("steps: 10", "steps: 10\n    timeout: 1d\n    retries: 0")
    spec = load_pipeline(write(tmp_path, told + text), ["variables.date=2026-11-30"])
    assert [(stage.retries, stage.timeout) for stage in spec.stages.values()] == [
        (2, 5400.0), (2, 5400.0), (0, 86400.0)
    ]  # fmt: skip
    assert spec.expected == 7200 and spec.variables == {"date": "2026-11-30"}
    assert [notice.when for notice in spec.notices] == [
        ["failure", "gate", "recovery"], ["always"]
    ]  # fmt: skip
    assert spec.metrics is not None and spec.metrics.file == "a.prom"
    plain = load_pipeline(write(tmp_path, GOOD))
    assert {(stage.retries, stage.timeout) for stage in plain.stages.values()} == {(0, None)}
    same = [(stage.stage.config, stage.inputs) for stage in plain.stages.values()]
    assert [(stage.stage.config, stage.inputs) for stage in spec.stages.values()] == same


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("retries: -1", "retries: must be a whole number from 0 to 100, not -1"),
        ("retries: true", "retries: must be a whole number"),
        ("timeout: 90", "timeout: must be a time with its unit, as 90s, 20m, 2h or 1d, not 90"),
        ("timeout: 0s", "timeout: must be a time"),
        ("timeout: 400d", "timeout: must be a time"),
        ("expected: soon", "expected: must be a time with its unit"),
        ("notify: {when: never, command: [a]}", "notify.when.0"),
        ("notify: {when: always}", "takes one of command:, webhook: and apprise:"),
        ("notify: [{comand: [a]}]", 'notify.comand: unknown option; did you mean "command"?'),
        ("metrics: {push: http://a}", "metrics.push: unknown option"),
        ("metrics: 3", "metrics"),
        ("beam: {environment_type: EXTERNAL}", "beam.environment_config: must be host:port"),
        (
            "beam: {environment_type: EXTERNAL, environment_config: 'a:b'}",
            "beam.environment_config: 'a:b' must be host:port",
        ),
    ],
)
def test_wrong_things_told_to_the_engine(tmp_path: Path, text: str, message: str) -> None:
    reported = problems(tmp_path, f"{text}\n{GOOD}")
    assert any(number == 1 and message in problem for number, problem in reported), reported


def test_variables_keep_their_type(tmp_path: Path) -> None:
    text = "variables: {n: 12, dir: data}\n" + GOOD.replace("steps: 10", "steps: ${n}")
    spec = load_pipeline(write(tmp_path, text.replace("a.tsv", "'${dir}/a.tsv'")))
    assert spec.stages["train"].stage.config.steps == 12
    assert spec.stages["rows"].stage.config.source == "data/a.tsv"


def test_unknown_variable(tmp_path: Path) -> None:
    text = "variables: {number: 12}\n" + GOOD.replace("steps: 10", "steps: ${nunber}")
    assert problems(tmp_path, text) == [(9, 'unknown variable ${nunber}; did you mean "number"?')]


def test_include_is_overridden_and_keeps_its_lines(tmp_path: Path) -> None:
    write(tmp_path, GOOD, "base.yaml")
    text = "include: base.yaml\nname: mine\nstages:\n  train: {steps: 7}\n"
    spec = load_pipeline(write(tmp_path, text))
    assert (spec.name, spec.stages["train"].stage.config.steps) == ("mine", 7)
    write(tmp_path, GOOD.replace("layers: 1", "layer: 1"), "base.yaml")
    with pytest.raises(SpecError) as caught:
        load_pipeline(write(tmp_path, text))
    assert str(caught.value).endswith('did you mean "layers"?')
    assert "base.yaml:7" in str(caught.value)


def test_include_of_itself(tmp_path: Path) -> None:
    ((_, message),) = problems(tmp_path, "include: p.yaml\n" + GOOD)
    assert "includes itself" in message


def test_set_overrides_and_is_validated(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    spec = load_pipeline(path, ["train.steps=200", "seed=4", "train.model.width=64"])
    assert spec.seed == 4
    config = spec.stages["train"].stage.config
    assert (config.steps, config.model.width) == (200, 64)
    for setting, message in [
        ("train.stepz=1", 'train.stepz: unknown option; did you mean "steps"?'),
        ("trian.steps=1", "there is no stage 'trian'; did you mean \"train\"?"),
        ("train.steps", "write --set STAGE.OPTION=VALUE"),
        ("train.steps=x", "train.steps: input should be a valid integer"),
    ]:
        with pytest.raises(SpecError) as caught:
            load_pipeline(path, [setting])
        assert f"--set {setting}: {message}" in str(caught.value)
