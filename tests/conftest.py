"""Shared fixtures: the command line, and small jobs on generated digits."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
Run = Callable[..., subprocess.CompletedProcess[str]]


def pytest_configure(config: pytest.Config) -> None:
    """Each of several test processes has a core of its own. Two that compute with a thread for
    every core wait for each other in OpenMP, spinning: up to thirty times as long, where measured.
    """
    worker: dict[str, str] | None = getattr(config, "workerinput", None)
    if worker is not None and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker["workerid"].removeprefix("gw")) % len(cores)]})


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):  # several processes: what takes long begins first
        items.sort(key=lambda item: "system" not in item.path.parts)
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        import torch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="torch sees no CUDA device"))


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes by their number: some have the time in them, and every process must have the same
    names."""
    return f"{argname} of {len(val)} bytes" if isinstance(val, bytes) else None


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def run_pipeline() -> Run:
    """Runs `python -m pipelines.run` as a user does, and returns the completed process."""

    def run(*arguments: str | Path, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pipelines.run", *map(str, arguments)]
        completed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
        if code is not None:
            assert completed.returncode == code, completed.stdout + completed.stderr
        return completed

    return run


@pytest.fixture(scope="session")
def digits() -> Callable[..., Path]:
    """Writes a TSV of digit strings and their targets: copied, reversed or sorted."""

    def write(folder: Path, task: str, rows: int, longest: int = 8, seed: int = 3) -> Path:
        source = random.Random(seed)
        make: dict[str, Callable[[list[str]], list[str]]] = {
            "copy": lambda row: row,
            "reverse": lambda row: row[::-1],
            "sort": sorted,
        }
        seen: set[str] = set()
        while len(seen) < rows:
            length = source.randint(3, longest)
            seen.add(" ".join(source.choice("0123456789") for _ in range(length)))
        lines = ["source\ttarget"]
        lines += [f"{row}\t{' '.join(make[task](row.split()))}" for row in sorted(seen)]
        path = folder / f"{task}.tsv"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write


class MarianCheckpoints:
    """Randomly initialised Marian models with their tokenizers, as transformers saves them."""

    sources = ("low lower lowest", "new newer", "wide wider widest lowland", "newest zebra")
    targets = ("bas plus bas", "neuf plus neuf", "large zèbre", "le plus neuf")

    def save(self, folder: Path, separate: bool = False) -> Path:
        """Saves both in a new folder, with `separate` vocabularies or a shared one."""
        import sentencepiece
        import torch
        import transformers

        folder.mkdir()
        random.seed(3)
        vocabularies = []
        for name, texts in (("source", self.sources), ("target", self.targets)):
            words = " ".join(texts).split()
            lines = folder / f"{name}.txt"
            lines.write_text("\n".join(" ".join(random.choices(words, k=6)) for _ in range(300)))
            sentencepiece.SentencePieceTrainer.train(
                input=str(lines),
                model_prefix=str(folder / name),
                vocab_size=40,
                hard_vocab_limit=False,
                minloglevel=2,
            )
            (folder / f"{name}.model").rename(folder / f"{name}.spm")
            subwords = sentencepiece.SentencePieceProcessor(model_file=str(folder / f"{name}.spm"))
            vocabularies.append(
                [subwords.id_to_piece(n) for n in range(3, subwords.get_piece_size())]
            )
        source, target = vocabularies
        # OPUS-MT's order: EOS, UNK, all pieces, PAD. One piece is left out, as can happen there.
        rest = source[:-1] if separate else sorted({*source[:-1], *target})
        names = ["</s>", "<unk>", ">>fra<<", *rest, "<pad>"]
        vocabulary = {piece: id for id, piece in enumerate(names)}
        (folder / "vocab.json").write_text(json.dumps(vocabulary))
        options: dict[str, Any] = {}
        if separate:
            of_target = {piece: id for id, piece in enumerate(["</s>", "<unk>", *target, "<pad>"])}
            # transformers has one pad id, which must be the last of both vocabularies.
            for shorter, longer in ((of_target, vocabulary), (vocabulary, of_target)):
                while len(shorter) < len(longer):
                    last = shorter.pop("<pad>")
                    shorter |= {f"<extra{last}>": last, "<pad>": last + 1}
            (folder / "vocab.json").write_text(json.dumps(vocabulary))
            (folder / "target_vocab.json").write_text(json.dumps(of_target))
            options = {
                "share_encoder_decoder_embeddings": False,
                "decoder_vocab_size": len(of_target),
            }
        size, pad = len(vocabulary), vocabulary["<pad>"]
        torch.manual_seed(5)
        config = transformers.MarianConfig(
            **{
                "vocab_size": size, "d_model": 32, "encoder_layers": 2, "decoder_layers": 3,
                "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48,
                "decoder_ffn_dim": 48, "activation_function": "swish", "scale_embedding": True,
                "pad_token_id": pad, "eos_token_id": 0, "decoder_start_token_id": pad,
                "bad_words_ids": [[pad]], "forced_eos_token_id": None, "max_length": 40,
                "max_position_embeddings": 64, **options,
            }
        )  # fmt: skip
        model = transformers.MarianMTModel(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "embed_positions" not in name and "norm" not in name:
                    parameter.normal_(std=0.3)
                elif "norm" in name:
                    parameter.uniform_(0.5, 1.5)
            model.final_logits_bias.normal_()
        model.save_pretrained(folder)
        self.tokenizer(folder, separate).save_pretrained(folder)
        return folder

    def tokenizer(self, folder: Path, separate: bool = False) -> Any:
        import transformers

        return transformers.MarianTokenizer(
            str(folder / "source.spm"),
            str(folder / "target.spm"),
            str(folder / "vocab.json"),
            str(folder / "target_vocab.json") if separate else None,
            separate_vocabs=separate,
        )


@pytest.fixture(scope="session")
def marian() -> MarianCheckpoints:
    return MarianCheckpoints()


SMALL = """\
name: {name}
seed: 5
beam: {beam}
stages:
  rows:
    use: ingest
    source: {source}
    columns: {{text: source, target: target}}
    split: {{valid: 20, test: 30}}
    deduplicate: exact
    shards: 3
  text: {{records: rows, vocabulary: {{size: 20, shared: true}}}}
  train:
    features: text
    model: {{use: transformer, layers: 1, width: 32, heads: 2, feed_forward: 64}}
    steps: {steps}
    batch_tokens: 600
    warmup: 10
    validate_every: 10
    checkpoint_every: 5
    average: 2
    precision: fp32
  export: {{model: train, features: text}}
  generate: {{graphs: export, features: text}}
  score: {{predictions: generate}}
  report: {{scores: score}}
"""


@pytest.fixture(scope="session")
def small_job(digits: Callable[..., Path]) -> Callable[..., Path]:
    """Writes a complete job on 300 digit strings, which takes a few seconds."""

    def write(folder: Path, name: str = "small", steps: int = 20, beam: str = "{}") -> Path:
        digits(folder, "copy", 300)
        path = folder / f"{name}.yaml"
        path.write_text(SMALL.format(name=name, steps=steps, beam=beam, source="copy.tsv"))
        return path

    return write


@pytest.fixture(scope="session")
def finished(
    tmp_path_factory: pytest.TempPathFactory, small_job: Callable[..., Path], run_pipeline: Run
) -> tuple[Path, Path]:
    """A small job that has run once: its file and its runs folder. Do not change them."""
    folder = tmp_path_factory.mktemp("finished")
    job = small_job(folder)
    run_pipeline(job, "--runs-dir", folder / "runs")
    return job, folder / "runs"


@pytest.fixture(scope="session")
def read_record() -> Callable[[Path], dict[str, Any]]:
    """The record of the newest run of a pipeline."""

    def read(home: Path) -> dict[str, Any]:
        newest = max(path for path in home.glob("*/run.json") if not path.parent.is_symlink())
        record: dict[str, Any] = json.loads(newest.read_text())
        return record

    return read


@pytest.fixture(scope="session")
def artifact_bytes() -> Callable[[Path], dict[str, bytes]]:
    """Every file of every artifact in a runs folder, by stage and name."""

    def read(runs: Path) -> dict[str, bytes]:
        return {
            str(path.relative_to(runs / "store" / "artifacts")): path.read_bytes()
            for path in sorted((runs / "store" / "artifacts").rglob("*"))
            if path.is_file()
        }

    return read


TINY = """
import errno, os, signal, sys, time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from pipelines.contracts.scores import Score
from pipelines.stage import Config, Context, Inputs, Result, Stage

class Options(Config):
    does: str = ""
    size: int = 0
    scored: bool = False

@dataclass(frozen=True)
class Piece:
    name: str

@dataclass(frozen=True)
class Outcome:
    n: int

def slow(piece, ticks):
    time.sleep(0.05)
    return Outcome(1)

def wrong(piece, ticks):
    raise ValueError("row 3 of d.tsv is wrong:\\nsee there")

def flaky(piece, ticks):
    refuse_twice(Path(piece.name.replace("|", "/")))
    return Outcome(1)

def refuse_twice(count):
    before = int(count.read_text()) if count.exists() else 0
    count.write_text(str(before + 1))
    if before < 2: raise ConnectionRefusedError(errno.ECONNREFUSED, "no such luck")

class Makes(Stage[Options]):
    output = "things"
    def run(self, context: Context, inputs: Inputs) -> Result:
        does = self.config.does
        if does == "exit": sys.exit(0)
        if does == "recursion": self.run(context, inputs)
        if does == "surrogate": raise ValueError("no file \\udc80.txt")
        if does == "interrupt": raise KeyboardInterrupt
        if does == "wrong": context.beam.map("w", [Piece("a"), Piece("b")], wrong, Outcome,
            context.scratch, total=2, unit="rows")
        if does == "slow":
            pieces = [Piece(str(n)) for n in range(self.config.size or 200)]
            context.beam.map("s", pieces, slow, Outcome, context.scratch, total=1, unit="rows")
        if does == "swallow":
            (context.output.parent / "ready").touch()
            try:
                time.sleep(20)
            except BaseException:
                pass
        if does == "flaky": refuse_twice(context.output.parent / "count")
        if does == "flaky worker":
            place = str(context.output.parent / "count").replace("/", "|")
            context.beam.map("f", [Piece(place)], flaky, Outcome, context.scratch, total=1,
                unit="rows")
        if does == "hang":
            (context.output / "half.txt").touch()
            try:
                time.sleep(60)
            except Exception:
                pass
        if does == "stuck":
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
            time.sleep(60)
        (context.output / "a.txt").write_bytes(b"x" * self.config.size)
        return Result(1, 1)
    def scores(self, artifact: Any) -> list[Score]:
        if not self.config.scored: return []
        size = (artifact.folder / "a.txt").stat().st_size
        return [Score(task="t", split="test", slice=None, metric="quality", value=size,
            signature="q", n=1, ci95=None)]
    def present(self, artifact: Any, view: Any) -> None:
        if self.config.does == "present": raise ValueError("content.json is damaged")
        if self.config.does == "present exit": raise SystemExit
"""


@pytest.fixture
def tiny_job(tmp_path: Path) -> Path:
    """A job of two stages that take no time, and of which the second does what it is told."""
    (tmp_path / "tiny_stages.py").write_text(TINY)
    path = tmp_path / "job.yaml"
    path.write_text(
        "name: job\nstages:\n  first: {use: 'tiny_stages:Makes', size: 7}\n"
        "  second: {use: 'tiny_stages:Makes'}\n"
    )
    return path


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Makes a file system with so many bytes; skips where that is not allowed."""
    mounted: list[Path] = []

    def make(size: int) -> Path:
        folder = tmp_path / f"disk-{size}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("this user cannot mount a file system")
        mounted.append(folder)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)
