"""Pipeline files that are wrong, or are meant to do harm: a sentence with file and line, exit code
2, soon, in little memory, and no traceback."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.contracts.tasks import checked_name
from pipelines.reading.document import SpecError
from pipelines.reading.spec import load_pipeline

ROWS = "stages:\n  rows: {use: ingest, source: a.tsv, columns: {text: a, target: b}}\n"


def problems(folder: Path, text: str | bytes, *settings: str) -> list[str]:
    path = folder / "p.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    started = time.monotonic()
    with pytest.raises(SpecError) as caught:
        load_pipeline(path, settings)
    assert time.monotonic() - started < 5
    return [str(problem).removeprefix(str(folder) + "/") for problem in caught.value.problems]


def laughs(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join(lines) + "\n"


def merged_laughs(levels: int) -> str:
    keys = ", ".join(f"k{n}: {n}" for n in range(10))
    lines = [f"a0: &a0 {{{keys}}}"]
    lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, levels)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (laughs(9), "aliases stand for more than 200,000 values"),
        (merged_laughs(9), "aliases stand for more than 200,000 values"),
        ("a: &a [*a]\n", "p.yaml:1: an anchor contains its own alias"),
        ("a: &a\n  <<: *a\n", "p.yaml:1: an anchor contains its own alias"),
        ("a: " + "[" * 3000 + "\n", "p.yaml:1: is not valid YAML: more than 100 levels are nested"),
        ("a: " + "{b: " * 3000 + "\n", "more than 100 levels are nested"),
        ("a:\n" + "".join("  " * n + "- \n" for n in range(1, 300)), "more than 100 levels"),
        ("seed: 2024-13-45\n" + ROWS, "p.yaml:1: '2024-13-45' is no value: month must be in 1..12"),
        ("seed: 0x_\n" + ROWS, "p.yaml:1: '0x_' is no value"),
        ("seed: " + "9" * 5000 + "\n" + ROWS, "p.yaml:1: '99999"),
        ("seed: " + "9" * 40 + "\n" + ROWS, "p.yaml:1: seed: must be from 0 to 922337203685477"),
        ("seed: -1\n" + ROWS, "p.yaml:1: seed: must be from 0 to"),
        ("name: \0\n" + ROWS, "p.yaml: is not valid YAML: unacceptable character #x0000"),
        ("? !!set {a}\n: 1\n", "p.yaml:1: a key must be a plain value"),
        ("? [a, b]\n: 1\n", "p.yaml:1: a key must be a plain value"),
        ("<<: 3\n", "p.yaml:1: <<: takes a mapping, or a list of them"),
        ("- a\n", "p.yaml:1: must be a mapping"),
        (b"\xff\xfe", "p.yaml:1: is not UTF-8 text"),
        ("#" * 4_100_000, "p.yaml: has more than 4,000,000 bytes"),
        ("name: " + "n" * 300 + "\n" + ROWS, "name: 'nnn"),
        ("name: ../x\n" + ROWS, "name: '../x' must be up to 100 letters"),
        ("stages:\n  " + "s" * 300 + ": {use: ingest}\n", "cannot be the name of a stage"),
        ("include: /etc/passwd\n" + ROWS, "/etc/passwd"),
        ("include: list.yaml\n" + ROWS, "list.yaml:1: list.yaml is included, so it must be a map"),
        ("include: [good.yaml, list.yaml]\n" + ROWS, "list.yaml:1: list.yaml is included"),
        ("include: loop.yaml\n" + ROWS, "p.yaml:1: included file 'loop.yaml'"),
        ("include: " + "l" * 5000 + "\n" + ROWS, "p.yaml:1: included file 'lll"),
        ('include: "a\\0b"\n' + ROWS, "p.yaml:1: included file 'a\\x00b'"),
        ("include: /dev\n" + ROWS, "p.yaml:1: included file /dev does not exist"),
        ("include: twice0.yaml\n" + ROWS, "more than 100 files are included"),
        ("variables: {v: " + "x" * 1_000_000 + "}\nname: '" + "${v}" * 100 + "'\n" + ROWS,
         "with its variables, the file has more than 20,000,000 characters"),
        ("stages:\n  a: {use: '..:x'}\n", "'..:x' is not of the form package.module:Class"),
        ("stages:\n  a: {use: '.:y'}\n", "'.:y' is not of the form"),
        ("stages:\n  a: {use: 'broken_module:X'}\n", "cannot import 'broken_module' of"),
        ("stages:\n  a: {use: 'leaving_module:X'}\n", "SystemExit: 3"),
        (ROWS + "  train: {features: rows, model: {use: 'os:system'}}\n",
         "train.model.use: os:system is not a class of options"),
        (ROWS.replace("}}", "}, split: {valid: .nan}}"), "finite number"),
        (ROWS.replace("}}", "}, max_rejected: .nan}"), "max_rejected"),
        (ROWS + "  train: {features: rows, model: {use: transformer, width: 16, heads: 3}}\n",
         "heads: 3 must divide width: 16"),
        (ROWS + "  train: {features: rows, model: {use: transformer, width: 999999999}}\n",
         "train.model.width: input should be less than or equal to 65536"),
        (ROWS + "  train: {features: rows, model: {use: transformer}, learning_rate: .inf}\n",
         "train.learning_rate: input should be a finite number"),
        ("beam: {direct_num_wrkers: 2}\n" + ROWS,
         'beam.direct_num_wrkers: unknown option; did you mean "direct_num_workers"?'),
        (ROWS.replace("}}", "}, task: en/de}"), "'en/de' cannot be the name of a task"),
        (ROWS.replace("}}", "}, task: ../../x}"), "cannot be the name of a task"),
        (ROWS.replace("}}", "}, task: " + "t" * 300 + "}"), "cannot be the name of a task"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_a_sentence(
    tmp_path: Path, text: str | bytes, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "good.yaml").write_text("seed: 77\n")
    (tmp_path / "list.yaml").write_text("- a\n")
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    for n in range(12):
        (tmp_path / f"twice{n}.yaml").write_text(
            f"include: [{tmp_path}/twice{n + 1}.yaml, {tmp_path}/twice{n + 1}.yaml]\n"
        )
    (tmp_path / "twice12.yaml").write_text("seed: 1\n")
    (tmp_path / "broken_module.py").write_text("def x(:\n")
    (tmp_path / "leaving_module.py").write_text("raise SystemExit(3)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    said = problems(tmp_path, text)
    assert any(wanted in problem for problem in said), said
    assert all(len(problem) < 600 for problem in said)


@pytest.mark.parametrize("setting", ["include=x.yaml", "seed=2024-13-45", "seed=[", "seed=*a"])
def test_settings_are_read_with_the_same_care(tmp_path: Path, setting: str) -> None:
    (said,) = problems(tmp_path, ROWS, setting)
    assert said.startswith(f"--set {setting}: ")


def test_a_setting_can_be_empty(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(ROWS + "gates: [bleu >= 1]\n")
    assert load_pipeline(tmp_path / "p.yaml", ["gates="]).gates == ()


def test_merge_keys_mean_what_yaml_says(tmp_path: Path) -> None:
    """YAML 1.1's merge key: own keys win, then the earlier of the merged mappings."""
    import yaml

    from pipelines.reading.document import parse

    text = "a: &a {x: 1, y: 1}\nb: &b {y: 2, z: 2}\nc: {<<: [*a, *b], x: 3}\nd: {<<: *b, w: 4}\n"
    assert parse(text, "t").plain() == yaml.safe_load(text)


@pytest.mark.parametrize("name", ["translate", "读", "zh-en", "read.2", "a b", "C++"])
def test_names_of_tasks(name: str) -> None:
    assert checked_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".x", "-x", "a/b", "a\\b", "a\nb", "a\0", "x" * 101, "读" * 90]
)
def test_what_cannot_be_the_name_of_a_task(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be the name of a task"):
        checked_name(name)


TWO_TASKS = """\
stages:
  one: {use: ingest, source: a.tsv, columns: {text: a, target: b}, task: one}
  two: {use: ingest, source: b.tsv, columns: {text: a, target: b}, task: two}
  text: {records: [one, two]}
  train: {features: text, model: {use: transformer, layers: 1, width: 16, heads: 2}}
  export: {model: train, features: text}
  generate: {graphs: export, features: text, prompts: [PROMPT]}
"""


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("hello", "say which task, as in {task: one, text: …}; there are one, two"),
        ("{text: hello}", "say which task"),
        ("{task: onne, text: hello}", "there is no task 'onne'; did you mean \"one\"?"),
    ],
)
def test_prompts_are_checked_before_anything_runs(tmp_path: Path, prompt: str, wanted: str) -> None:
    (said,) = problems(tmp_path, TWO_TASKS.replace("PROMPT", prompt))
    assert said.startswith("p.yaml:7: generate: prompts: ") and wanted in said


def test_prompts_with_a_task_pass(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(TWO_TASKS.replace("PROMPT", "{task: two, text: hello}"))
    load_pipeline(tmp_path / "p.yaml")


@pytest.mark.parametrize("command", [["--plan"], []])
@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("gs://bucket/a.tsv", "gcsfs"),
        ("foo://x/a.tsv", "foo"),
        ("package://../x", "package"),
        ("package://no_such_package/x", "pip install no-such-package"),
        ("zip://a.txt::p.yaml", "p.yaml"),
        ("missing.tsv", "matches no file"),
        ("http://127.0.0.1:9/a.tsv", "http"),
    ],
)
def test_sources_that_cannot_be_reached_are_named(
    tmp_path: Path, root: Path, command: list[str], source: str, wanted: str
) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(ROWS.replace("a.tsv", f"'{source}'"))
    words = ["-m", "pipelines.run", str(path), "--runs-dir", str(tmp_path / "r"), *command]
    completed = subprocess.run(
        [sys.executable, *words],
        cwd=root, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert "Traceback" not in completed.stderr
    assert completed.returncode == (2 if command else 1)
    assert wanted in completed.stderr and "p.yaml:2: rows: " in completed.stderr


def test_a_bomb_takes_little_memory(tmp_path: Path, root: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(laughs(9))

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (700_000_000, 700_000_000))

    completed = subprocess.run(
        [sys.executable, "-m", "pipelines.run", str(path)],
        cwd=root, capture_output=True, text=True, timeout=30, preexec_fn=limited,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    assert completed.returncode == 2 and "200,000 values" in completed.stderr
