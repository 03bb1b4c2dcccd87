"""Search in the pipeline and the exported graphs alone give the same outputs."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from exports.decoding.translator import Translator
from model.modalities.preparation import sources_of
from pipelines.store.shared import SharedPath
from stages.generate.decoding import TranslatorMaker
from stages.generate.options import SearchConfig

Run = Callable[..., subprocess.CompletedProcess[str]]


def folder_of(runs: Path, stage: str) -> Path:
    record: dict[str, Any] = json.loads((runs / "small" / "latest" / "run.json").read_text())
    return runs / record["stages"][stage]["artifact"]


def predictions(runs: Path) -> pl.DataFrame:
    paths = sorted((folder_of(runs, "generate") / "rows").glob("*.parquet"))
    return pl.concat([pl.read_parquet(path) for path in paths], how="diagonal").sort("id")


def translate(root: Path, graphs: Path, text: str, *options: str, code: int = 0) -> Any:
    """Runs the command line in a process that must not load torch or Beam."""
    script = (
        "import sys\nfrom exports.translate import main\ncode = main(sys.argv[1:])\n"
        "assert not {'torch', 'apache_beam'} & sys.modules.keys()\nsys.exit(code)\n"
    )
    completed = subprocess.run(
        [sys.executable, "-c", script, str(graphs), *options],
        input=text, capture_output=True, text=True, encoding="utf-8", cwd=root,
    )  # fmt: skip
    assert completed.returncode == code, completed.stderr
    return completed


@pytest.fixture
def copied(finished: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """A copy of the finished job and its runs, which a test may change."""
    for path in finished[0].parent.glob("*.*"):
        shutil.copy(path, tmp_path)
    shutil.copytree(finished[1], tmp_path / "runs", symlinks=True)
    return tmp_path / "small.yaml", tmp_path / "runs"


def test_the_graphs_alone_say_what_the_pipeline_said(
    finished: tuple[Path, Path], root: Path
) -> None:
    rows = predictions(finished[1])
    graphs = folder_of(finished[1], "export")
    lines = [*rows["text"].to_list(), "", "1 2"]
    outputs = translate(root, graphs, "\n".join(lines)).stdout.split("\n")
    assert outputs[: len(rows)] == rows["hypothesis"].to_list()
    assert outputs[len(rows)] == "" and len(outputs) == len(lines) + 1
    assert translate(root, graphs, "").stdout == ""
    assert translate(root, graphs, "\n  \n").stdout == "\n\n"


def test_what_cannot_be_used_is_told(
    finished: tuple[Path, Path], root: Path, tmp_path: Path
) -> None:
    missing = translate_error(root, tmp_path, code=2)
    assert "name the folder that export made" in missing
    graphs = folder_of(finished[1], "export")
    assert "beam: size 0" in translate_error(root, graphs, "--beam", "0", code=1)
    with pytest.raises(ValueError, match="a source has 1201 positions, the model takes 512"):
        Translator(graphs).answer([{"text": "1 " * 600}])


DAMAGE: dict[str, Callable[[Path], object]] = {
    "graphs.json": lambda folder: (folder / "graphs.json").write_text("["),
    "is damaged": lambda folder: _described(folder, floats="object"),
    "numbers a row": lambda folder: _described(folder, cache={"c": [10**6, 10**6]}),
    "encoder.onnx cannot be loaded": lambda folder: (folder / "encoder.onnx").write_bytes(b"x"),
    "step.onnx cannot be loaded": lambda folder: (folder / "step.onnx").unlink(),
    "cannot be used": lambda folder: shutil.rmtree(folder / "text"),
    "nope": lambda folder: _described(folder, encoded=["nope"]),
}


def _described(folder: Path, **changes: object) -> None:
    path = folder / "graphs.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("wanted", DAMAGE)
def test_a_damaged_folder_is_told_in_a_sentence(
    copied: tuple[Path, Path], root: Path, wanted: str
) -> None:
    (folder,) = copied[1].glob("store/artifacts/export-*")
    (folder / "manifest.json").unlink()  # with it, all of this is found before
    DAMAGE[wanted](folder)
    errors = translate(root, folder, "a\n", "--threads", "1", code=1).stderr
    assert wanted in errors and "Traceback" not in errors


def test_a_file_that_was_not_stored_is_not_loaded(copied: tuple[Path, Path], root: Path) -> None:
    (folder,) = copied[1].glob("store/artifacts/export-*")
    for name, wanted in (("step.onnx.data", "was not there when"), ("keep.onnx", "is not as it")):
        (folder / name).write_bytes(b"x")
        errors = translate(root, folder, "a\n", "--threads", "1", code=1).stderr
        assert f"{name} {wanted}" in errors


def test_lines_that_cannot_be_translated_come_out_empty(
    finished: tuple[Path, Path], root: Path
) -> None:
    graphs = folder_of(finished[1], "export")
    good = translate(root, graphs, "1 2\n3\n").stdout
    lines = [b"1 2", b"1 " * 600, b"1 \xff 2", b"3"]
    command = [sys.executable, "-m", "exports.translate", str(graphs)]
    completed = subprocess.run(command, input=b"\n".join(lines), capture_output=True, cwd=root)
    assert completed.returncode == 1
    first, long, bad, last, rest = completed.stdout.decode().split("\n")
    assert f"{first}\n{last}\n" == good and (long, bad, rest) == ("", "", "")
    assert completed.stderr.decode().splitlines() == [
        "exports.translate: line 3 is not UTF-8 at byte 3; left empty",
        "exports.translate: line 2 is longer than the model takes (512 positions); left empty",
        "exports.translate: left 2 of 4 lines empty",
    ]


def test_whoever_reads_may_stop(finished: tuple[Path, Path], root: Path) -> None:
    graphs = folder_of(finished[1], "export")
    command = [sys.executable, "-m", "exports.translate", str(graphs)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=root
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdout.close()
        process.stdin.write(b"1 2\n")
        process.stdin.close()
        assert process.stderr.read() == b""
    assert process.returncode == -signal.SIGPIPE


def translate_error(root: Path, graphs: Path, *options: str, code: int) -> str:
    completed = subprocess.run(
        [sys.executable, "-m", "exports.translate", str(graphs), *options],
        input="1 2\n", capture_output=True, text=True, cwd=root,
    )  # fmt: skip
    assert completed.returncode == code, completed.stderr
    return completed.stderr


def test_a_pipeline_searches_and_keeps_the_best(
    copied: tuple[Path, Path], root: Path, run_pipeline: Run
) -> None:
    job, runs = copied
    options = "generate.search={beam: 3, best: 2, length_penalty: 0.5, minimum: 1}"
    run_pipeline(job, "--runs-dir", runs, "--set", options)
    rows = predictions(runs)
    for row in rows.iter_rows(named=True):
        first, *others = row["best"]
        assert len(others) == 1 and first["hypothesis"] == row["hypothesis"]
        assert first["log_probability"] == row["log_probability"]
    lines = "".join(f"{text}\n" for text in rows["text"])
    alone = translate(
        root, folder_of(runs, "export"), lines,
        "--beam", "3", "--length-penalty", "0.5", "--minimum", "1",
    )  # fmt: skip
    assert alone.stdout.splitlines() == rows["hypothesis"].to_list()


def test_generating_and_scoring_load_no_torch(copied: tuple[Path, Path], root: Path) -> None:
    job, runs = copied
    options = [str(job), "--runs-dir", str(runs), "--set", "generate.search={beam: 2}"]
    script = (
        f"import sys\nfrom pipelines.run import main\ncode = main({options!r})\n"
        "assert 'apache_beam' in sys.modules and 'torch' not in sys.modules\nsys.exit(code)\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=root, check=True, capture_output=True)


@pytest.mark.long
def test_coverage_takes_graphs_that_give_attention(
    copied: tuple[Path, Path], root: Path, run_pipeline: Run
) -> None:
    job, runs = copied
    # Three tokens cannot cover a longer source, however they attend to it.
    settings = ("--set", "generate.search={beam: 4, minimum: 2, maximum: 3, coverage: 9}")
    completed = run_pipeline(job, "--runs-dir", runs, *settings, code=1)
    assert "set attention: true in export" in completed.stdout + completed.stderr
    run_pipeline(job, "--runs-dir", runs, *settings, "--set", "export.attention=true")
    graphs, rows = folder_of(runs, "export"), predictions(runs)
    search = SearchConfig(beam=4, minimum=2, maximum=3, coverage=9)
    translator = TranslatorMaker(SharedPath.of(graphs), ("cpu",), 1, 1024, search, seed=0)()
    assert translator.beam.coverage == 9
    source = sources_of(
        translator.processor, [{"text": text, "task": "translate"} for text in rows["text"]]
    )
    best = [hypotheses[0] for hypotheses in translator.search(source)]
    assert [hypothesis.tokens for hypothesis in best] == rows["tokens"].to_list()
    assert any(hypothesis.coverage < 0 for hypothesis in best)
    errors = translate_error(root, graphs, "--coverage", "9", code=2)
    assert "say --beam too" in errors


def test_a_row_draws_alike_in_any_batch_and_worker(
    finished: tuple[Path, Path], copied: tuple[Path, Path], run_pipeline: Run
) -> None:
    job, runs = copied
    drawn = []
    for batch_tokens, workers in ((1024, 1), (30, 1), (31, 2)):
        settings = [
            "generate.search={temperature: 1.5, top_k: 5, top_p: 0.95}",
            f"generate.batch_tokens={batch_tokens}",
            f"beam={{direct_num_workers: {workers}}}",
        ]
        options = [part for setting in settings for part in ("--set", setting)]
        run_pipeline(job, "--runs-dir", runs, *options)
        drawn.append(predictions(runs)["hypothesis"].to_list())
    assert drawn[0] == drawn[1] == drawn[2]
    assert drawn[0] != predictions(finished[1])["hypothesis"].to_list()


def test_of_several_draws_the_same_are_chosen_in_any_batch(
    finished: tuple[Path, Path], copied: tuple[Path, Path], run_pipeline: Run
) -> None:
    job, runs = copied
    kept = []
    for batch_tokens, workers in ((1024, 1), (40, 2)):
        settings = [
            "generate.select={draws: 6, keep: 3, variety: 0.3, temperature: 1.5}",
            f"generate.batch_tokens={batch_tokens}",
            f"beam={{direct_num_workers: {workers}}}",
        ]
        options = [part for setting in settings for part in ("--set", setting)]
        run_pipeline(job, "--runs-dir", runs, *options)
        rows = predictions(runs)
        kept.append([[each["hypothesis"] for each in row] for row in rows["best"]])
        assert [row[0] for row in kept[-1]] == rows["hypothesis"].to_list()
    assert kept[0] == kept[1]
    assert {len(row) for row in kept[0]} <= {1, 2, 3} and max(map(len, kept[0])) == 3
    assert all(len(set(row)) == len(row) for row in kept[0])
    assert rows["hypothesis"].to_list() != predictions(finished[1])["hypothesis"].to_list()


LONGEST = """
import numpy

def likeness(texts):
    \"\"\"All like the longest alone.\"\"\"
    alike = numpy.zeros((len(texts), len(texts)))
    alike[max(range(len(texts)), key=lambda number: len(texts[number]))] = 1
    return alike

def wrong(texts):
    return numpy.zeros(3)
"""


def test_a_utility_of_the_users_own(
    copied: tuple[Path, Path], run_pipeline: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, runs = copied
    (job.parent / "own_utility.py").write_text(LONGEST)
    monkeypatch.setenv("PYTHONPATH", str(job.parent))
    options = "{{draws: 6, temperature: 2, utility: '{}'}}"
    lengths = []
    for utility in ("ngram_f1", "own_utility:likeness"):
        run_pipeline(job, "--runs-dir", runs, "--set", f"generate.select={options.format(utility)}")
        lengths.append(sum(map(len, predictions(runs)["hypothesis"])))
    assert lengths[1] > lengths[0]
    # Its code is a part of what the result depends on.
    settings = ("--set", f"generate.select={options.format('own_utility:likeness')}")
    again = run_pipeline(job, "--runs-dir", runs, "--plan", *settings)
    assert "generate" in again.stdout and "would run" not in again.stdout
    (job.parent / "own_utility.py").write_text(LONGEST.replace("] = 1", "] = 2"))
    changed = run_pipeline(job, "--runs-dir", runs, "--plan", *settings)
    assert changed.stdout != again.stdout
    settings = ("--set", f"generate.select={options.format('own_utility:wrong')}")
    failed = run_pipeline(job, "--runs-dir", runs, *settings, code=1)
    assert "the utility wrong must return a number for every two of" in (
        failed.stdout + failed.stderr
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("{draws: 4, keep: 5}", "keep: 5 is more than draws: 4"),
        ("{variety: 0.5}", "set keep: too"),
        ("{utility: ngram_f2}", "unknown utility 'ngram_f2'; did you mean \"ngram_f1\"?"),
        ("{tasks: [translat]}", "there is no task 'translat'"),
    ],
)
def test_a_selection_that_cannot_be(
    finished: tuple[Path, Path], run_pipeline: Run, options: str, message: str
) -> None:
    job, runs = finished
    select = f"generate.select={options}"
    completed = run_pipeline(job, "--runs-dir", runs, "--plan", "--set", select, code=2)
    assert message in completed.stdout + completed.stderr
    both = ("--set", "generate.select={}", "--set", "generate.search={beam: 2}")
    completed = run_pipeline(job, "--runs-dir", runs, "--plan", *both, code=2)
    assert "select: draws its outputs itself" in completed.stdout + completed.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("{beam: 2, best: 3}", "best: 3 is more than beam: 2"),
        ("{beam: 2, temperature: 1}", "leave beam: out"),
        ("{top_k: 3}", "set temperature: too"),
        ("{coverage: 0.1}", "set beam: too"),
    ],
)
def test_what_does_not_go_together(
    finished: tuple[Path, Path], run_pipeline: Run, options: str, message: str
) -> None:
    job, runs = finished
    search = f"generate.search={options}"
    completed = run_pipeline(job, "--runs-dir", runs, "--plan", "--set", search, code=2)
    assert message in completed.stdout + completed.stderr


@pytest.mark.long  # takes half a minute
def test_outputs_begin_as_told_and_keep_to_words(
    copied: tuple[Path, Path], run_pipeline: Run
) -> None:
    job, runs = copied
    (job.parent / "words.txt").write_text("3 4\n7\n")
    source = "rows.columns={text: source, target: target, begin: source}"
    options = "generate.search={prefix: begin, maximum: 30, beam: 2}"
    run_pipeline(job, "--runs-dir", runs, "--set", source, "--set", options)
    rows = predictions(runs)
    for row in rows.iter_rows(named=True):
        assert row["hypothesis"].startswith(row["begin"])
        assert len(row["tokens"]) <= 30
        ends = len(row["tokens"]) + row["finished"]
        assert len(row["token_log_probabilities"]) == ends
        assert sum(row["token_log_probabilities"]) == pytest.approx(
            row["log_probability"], abs=1e-3
        )
    options = "generate.search={words: words.txt, minimum: 3, maximum: 5, no_repeat: 1}"
    run_pipeline(job, "--runs-dir", runs, "--set", options)
    rows = predictions(runs)
    generated = "".join(rows["hypothesis"]).replace(" ", "")
    assert set(generated) <= set("347") and len(generated) > 0
    assert all(3 <= len(tokens) <= 5 for tokens in rows["tokens"])
    missing = "generate.search={prefix: elsewhere}"
    completed = run_pipeline(job, "--runs-dir", runs, "--set", missing, code=1)
    assert "the rows have no column 'elsewhere'" in completed.stdout + completed.stderr


@pytest.mark.long
@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_graphs_of_fewer_bits_go_through_the_pipeline(
    copied: tuple[Path, Path], root: Path, run_pipeline: Run, precision: str
) -> None:
    job, runs = copied
    settings = ("--set", f"export.precision={precision}", "--set", "export.max_loss=100")
    run_pipeline(job, "--runs-dir", runs, *settings)
    report = json.loads((runs / "small" / "latest" / "report" / "report.json").read_text())
    facts = report["lineage"]["export"]["properties"]
    assert facts["precision"] == precision and facts["bytes"] < facts["bytes_fp32"]
    assert set(facts["validation"]) == {"fp32", precision}
    rows = predictions(runs)
    assert facts["parity"]["tokens_agree"] == facts["parity"]["rows"] == len(rows)
    page = (runs / "small" / "latest" / "report" / "index.html").read_text()
    assert f"<td>{precision}</td>" in page
    lines = "".join(f"{text}\n" for text in rows["text"])
    alone = translate(root, folder_of(runs, "export"), lines)
    assert alone.stdout.splitlines() == rows["hypothesis"].to_list()
