"""How good a translator becomes in so many minutes: ours beside JoeyNMT and Hugging Face's Marian.

The same pairs, subwords, sizes and cores. Every contender has three settings; each is trained for
the fewest minutes, and the one with the best chrF on the validation split goes on (BLEU says
nothing of outputs that are hardly right yet): for every mark a training of its own, whose learning
rate ends at the mark; JoeyNMT 2.3 has no schedule that ends and works. All decode with a beam of 4.
BLEU and chrF, intervals and paired tests are sacreBLEU's. What was measured is kept in a file, and
a second call goes on where the first ended. All contenders use the processors that this program may
use: see `taskset`; ours and Hugging Face bf16 if they have it, which JoeyNMT cannot. See
benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import yaml
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest

from benchmarks.joeynmt import words, write_job
from benchmarks.runs import artifacts_of, rows_of
from model.configuration import TransformerConfig
from model.modalities.text import TextProcessor
from model.training.loop import resolve_precision

PEERS = Path(__file__).parent / "peers"
PIPELINE = "examples/zh-en.yaml"
TRAIN = yaml.safe_load(Path(PIPELINE).read_text())["stages"]["train"]
MODEL = TransformerConfig.model_validate(
    {name: value for name, value in TRAIN["model"].items() if name != "use"}
)
BEAM = 4
PROBE = 100
"""Steps that are timed, to know how many fit in the minutes: twice as many as Hugging Face sorts by
length at a time."""

SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "ours": {
        "as in the example": {},
        "AdamW at 0.003": {"train.optimizer": "adamw", "train.learning_rate": 0.003},
        "Muon at 0.005": {"train.learning_rate": 0.005},
    },
    "Hugging Face": {
        "linear from 0.001": {"learning_rate": 1e-3, "schedule": "linear", "dropout": 0.1},
        "linear from 0.002": {"learning_rate": 2e-3, "schedule": "linear", "dropout": 0.05},
        "cosine from 0.003": {"learning_rate": 3e-3, "schedule": "cosine", "dropout": 0.05},
    },
    "JoeyNMT": {
        "from 0.001": {"learning_rate": 1e-3, "dropout": 0.1, "batch": 2000},
        "from 0.002": {"learning_rate": 2e-3, "dropout": 0.05, "batch": 2000},
        "from 0.001, half the batch": {"learning_rate": 1e-3, "dropout": 0.05, "batch": 1000},
    },
}


@dataclass(frozen=True)
class Trained:
    """A training, and what it translates afterwards."""

    contender: str
    setting: str
    minutes: float
    steps: int
    seconds: float
    outputs: dict[str, dict[str, str]]
    """Of every split: the output of each row, by its id."""


class Data:
    """The pairs and references of a features artifact."""

    def __init__(self, features: Path) -> None:
        table = rows_of(features)
        self.processor = TextProcessor.load(features / "text")
        self.train: list[tuple[list[int], list[int]]] = []
        train = table.filter(pl.col("split") == "train")
        for corpus, *pair in train.select("corpus", "source_ids", "target_ids").iter_rows():
            self.train += [(pair[0], pair[1])] * TRAIN["oversample"]["corpus"].get(corpus, 1)
        self.held = {split: table.filter(pl.col("split") == split) for split in ("valid", "test")}

    def texts(self, ids: Sequence[Sequence[int]]) -> list[str]:
        return self.processor.decode(ids)


def job(runs: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Runs the example with other settings, and returns what is on record of the run."""
    command = [sys.executable, "-m", "pipelines.run", PIPELINE, "--runs-dir", str(runs)]
    for name, value in settings.items():
        command += ["--set", f"{name}={value}"]
    completed = subprocess.run(command, capture_output=True, text=True)
    if completed.returncode not in (0, 3):  # 3: a gate was not passed, as after few steps
        raise RuntimeError((completed.stdout + completed.stderr)[-3000:])
    found = last(runs)
    assert found is not None
    return found


def last(runs: Path) -> dict[str, Any] | None:
    """The folder of the last run, whatever its gates say, and its artifacts by stage; None if there
    is none."""
    records = sorted((runs / "zh-en").glob("2*/run.json"))  # named by when they began
    if not records:
        return None
    return {"folder": records[-1].parent, **artifacts_of(records[-1].parent)}


class Ours:
    """`python -m pipelines.run`, validation while it trains included."""

    def __init__(self, runs: Path) -> None:
        self.runs = runs

    def settings(self, setting: str, steps: int) -> dict[str, Any]:
        return {
            **SETTINGS["ours"][setting],
            "train.steps": steps,
            "train.validate_every": max(1, steps // 5),
            "generate.search.beam": BEAM,
        }

    def rate(self, setting: str) -> float:
        return PROBE / self.seconds(job(self.runs, self.settings(setting, PROBE)))

    def seconds(self, run: dict[str, Any]) -> float:
        """Of training, without the start of the process; also if an earlier run trained."""
        for record in sorted((self.runs / "zh-en").glob("2*/run.json")):
            if artifacts_of(record.parent).get("train") != run["train"]:
                continue
            events = (record.parent / "events.jsonl").read_text().splitlines()
            for event in map(json.loads, filter(None, events)):
                if event["event"] == "finished" and event.get("work") == "trains":
                    # The clock of the meter starts after the first step.
                    return float(event["seconds"]) * event["done"] / (event["done"] - 1)
        raise RuntimeError(f"{run['folder']}: nothing says how long it trained")

    def train(self, setting: str, steps: int) -> tuple[float, dict[str, dict[str, str]]]:
        run = job(self.runs, self.settings(setting, steps))
        seconds, outputs = self.seconds(run), {}
        for split in ("test", "valid"):
            settings = {**self.settings(setting, steps), "generate.split": split}
            made = job(self.runs, settings)["generate"]
            outputs[split] = dict(rows_of(made).select("id", "hypothesis").iter_rows())
        return seconds, outputs


class Peer:
    """A peer, which sees the subwords of the features artifact."""

    def __init__(self, python: str, data: Data) -> None:
        self.python, self.data, self.threads = python, data, len(os.sched_getaffinity(0))
        lengths = [len(target) for _, target in data.train]
        self.sentences = round(TRAIN["batch_tokens"] / float(np.mean(lengths)))
        """In a batch: on average as many target tokens as in ours."""

    def rate(self, setting: str) -> float:
        return PROBE / self.run(setting, PROBE, {})[0]

    def train(self, setting: str, steps: int) -> tuple[float, dict[str, dict[str, str]]]:
        sources = {split: table["source_ids"].to_list() for split, table in self.data.held.items()}
        seconds, ids = self.run(setting, steps, sources)
        outputs = {}
        for split, table in self.data.held.items():
            outputs[split] = dict(zip(table["id"], self.data.texts(ids[split]), strict=True))
        return seconds, outputs

    def run(
        self, setting: str, steps: int, sources: dict[str, list[list[int]]]
    ) -> tuple[float, dict[str, list[list[int]]]]:
        """Seconds of training, and of every split the ids of the outputs."""
        raise NotImplementedError

    def started(
        self, arguments: list[str], folder: Path, given: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads)}
        completed = subprocess.run(
            [self.python, *arguments],
            capture_output=True, text=True, cwd=folder, env=environment, input=given,
        )  # fmt: skip
        if completed.returncode:
            raise RuntimeError((completed.stdout + completed.stderr)[-3000:])
        return completed


class HuggingFace(Peer):
    def run(
        self, setting: str, steps: int, sources: dict[str, list[list[int]]]
    ) -> tuple[float, dict[str, list[list[int]]]]:
        sizes = self.data.processor.sizes
        asked = {
            **SETTINGS["Hugging Face"][setting],
            "layers": MODEL.layers, "decoder_layers": MODEL.decoder_layers, "width": MODEL.width,
            "heads": MODEL.heads, "init_std": MODEL.width**-0.5,  # learns more than Marian's 0.02
            "source_vocabulary": sizes["source"], "target_vocabulary": sizes["target"],
            "sentences": self.sentences,
            "rows": [{"source": source, "target": target} for source, target in self.data.train],
            "steps": steps, "skip": 0, "warmup": 100, "threads": self.threads,
            "precision": resolve_precision("auto", torch.device("cpu")),  # as ours
            "device": "cpu", "beam": BEAM, "translate": sources,
        }  # fmt: skip
        with tempfile.TemporaryDirectory() as name:
            path = Path(name) / "job.json"
            path.write_text(json.dumps(asked))
            printed = self.started([str((PEERS / "hf_train.py").resolve()), str(path)], Path(name))
        result = json.loads(printed.stdout.splitlines()[-1])
        return result["seconds"], result["translations"]


class JoeyNMT(Peer):
    def run(
        self, setting: str, steps: int, sources: dict[str, list[list[int]]]
    ) -> tuple[float, dict[str, list[list[int]]]]:
        asked = SETTINGS["JoeyNMT"][setting]
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            size = {
                **MODEL.model_dump(), "decoder_layers": MODEL.decoder_layers or MODEL.layers,
                "hidden": MODEL.hidden, "dropout": asked["dropout"],
            }  # fmt: skip
            training = {
                # Of padded tokens: batches are not of similar length, and with as many target
                # tokens in each as the others have, it made 72 steps in 5 minutes.
                "batch_size": asked["batch"], "batch_type": "token", "adam_betas": [0.9, 0.98],
                "learning_rate": asked["learning_rate"], "learning_rate_warmup": 100,
                "updates": steps, "logging_freq": steps, "validation_freq": steps,
            }  # fmt: skip
            testing = {
                "beam_size": BEAM, "beam_alpha": 1.0, "batch_size": 2000, "batch_type": "token",
                "max_output_length": 100,
            }  # fmt: skip
            config = write_job(folder, self.data.train, size, training, testing)
            trained = self.started(["-m", "joeynmt", "train", str(config), "--skip-test"], folder)
            seconds = seconds_between(trained.stderr, "EPOCH 1", "Step:")
            ids = {}
            for split, rows in sources.items():
                given = "\n".join(words(row[:-1]) for row in rows) + "\n"
                said = self.started(["-m", "joeynmt", "translate", str(config)], folder, given)
                ids[split] = [
                    [int(word[1:]) for word in line.split() if word[1:].isdigit()]
                    for line in said.stdout.split("\n")[: len(rows)]
                ]
        return seconds, ids


def seconds_between(log: str, first: str, last: str) -> float:
    """Seconds from the first line of a log with one text to the last line with another."""
    times = {}
    for line in log.splitlines():
        found = re.match(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3})", line)
        for text in (first, last):
            if found and text in line and (text == last or text not in times):
                times[text] = datetime.strptime(found[1], "%Y-%m-%d %H:%M:%S,%f")
    return (times[last] - times[first]).total_seconds()


def references(table: pl.DataFrame) -> list[list[str | None]]:
    names = ["reference", *(f"target_{n}" for n in (2, 3, 4) if f"target_{n}" in table.columns)]
    return [table[name].to_list() for name in names]


def hypotheses(trained: Trained, table: pl.DataFrame, split: str) -> list[str]:
    return [trained.outputs[split][row] for row in table["id"]]


def printed(best: dict[tuple[str, float], Trained], data: Data) -> None:
    contenders = list(dict.fromkeys(contender for contender, _ in best))
    print("| minutes | contender | setting | steps | seconds | corpus | BLEU | chrF |")
    print("|---:|---|---|---:|---:|---|---|---|")
    for (contender, minutes), trained in sorted(best.items(), key=lambda item: item[0][1]):
        for corpus in ("textbook", "tatoeba", "both"):
            table = data.held["test"]
            if corpus != "both":
                table = table.filter(pl.col("corpus") == corpus)
            outputs, wanted = hypotheses(trained, table, "test"), references(table)
            cells = []
            for metric in (BLEU(references=wanted), CHRF(references=wanted)):
                score = metric.corpus_score(outputs, None, n_bootstrap=1000)
                cells.append(f"{score.score:.1f} ± {score._ci:.1f}")
            print(
                f"| {minutes:g} | {contender} | {trained.setting} | {trained.steps:,} "
                f"| {trained.seconds:.0f} | {corpus} | {' | '.join(cells)} |"
            )
    print()
    table = data.held["test"]
    wanted = references(table)
    for minutes in sorted({minutes for _, minutes in best}):
        systems = [
            (contender, hypotheses(best[contender, minutes], table, "test"))
            for contender in contenders
            if (contender, minutes) in best
        ]
        if len(systems) < 2:
            continue
        metrics = {"BLEU": BLEU(references=wanted), "chrF": CHRF(references=wanted)}
        _, scores = PairedTest(systems, metrics, None, test_type="bs", n_samples=1000)()
        for metric in scores.keys() - {"System"}:
            for (contender, _), result in list(zip(systems, scores[metric], strict=True))[1:]:
                print(
                    f"{minutes:g} minutes, {metric}: {systems[0][0]} and {contender}: "
                    f"p = {result.p_value}"
                )


class Kept:
    """What was measured, in a file for each contender, so that several programs can write."""

    def __init__(self, folder: Path, data: Data) -> None:
        self.folder, self.data = folder, data
        known = [
            Trained(**json.loads(line))
            for contender in SETTINGS
            if self.path(contender).exists()
            for line in self.path(contender).read_text().splitlines()
        ]
        self.known = [each for each in known if each.setting in SETTINGS[each.contender]]

    def path(self, contender: str) -> Path:
        return self.folder / f"{contender}.jsonl"

    def find(self, contender: str, minutes: float) -> list[Trained]:
        return [
            trained
            for trained in self.known
            if (trained.contender, trained.minutes) == (contender, minutes)
        ]

    def best(self, contender: str, minutes: float) -> Trained:
        return max(self.find(contender, minutes), key=self.valid_chrf)

    def valid_chrf(self, trained: Trained) -> float:
        table = self.data.held["valid"]
        score = CHRF().corpus_score(hypotheses(trained, table, "valid"), references(table))
        return float(score.score)

    def measure(self, contender: str, setting: str, minutes: float, trainer: Ours | Peer) -> None:
        if any(trained.setting == setting for trained in self.find(contender, minutes)):
            return
        before = [known for known in self.known if known.contender == contender]
        rates = [known.steps / known.seconds for known in before if known.setting == setting]
        rate = rates[-1] if rates else trainer.rate(setting)
        steps = round(60 * minutes * rate)
        seconds, outputs = trainer.train(setting, steps)
        trained = Trained(contender, setting, minutes, steps, seconds, outputs)
        with self.path(contender).open("a") as file:
            file.write(json.dumps(asdict(trained)) + "\n")
        self.known.append(trained)
        print(
            f"{contender}, {setting}, {minutes:g} minutes: {steps} steps in {seconds:.0f} s, "
            f"{self.valid_chrf(trained):.2f} chrF on the validation split",
            file=sys.stderr, flush=True,
        )  # fmt: skip


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__)
    command.add_argument("--hf", help="python of an environment with transformers and accelerate")
    command.add_argument("--joey", help="python of an environment with joeynmt 2.3")
    command.add_argument("--minutes", type=float, nargs="+", default=[5, 10, 20])
    command.add_argument("--runs-dir", type=Path, default=Path("benchmarks/.work/quality"))
    command.add_argument("--only", nargs="+", metavar="CONTENDER", help="measure only these now")
    options = command.parse_args()
    runs = options.runs_dir.resolve()
    runs.mkdir(parents=True, exist_ok=True)
    made = last(runs)
    if made is None:
        made = job(runs, {"train.steps": 1, "train.validate_every": 1})
    data = Data(made["text"])
    trainers: dict[str, Ours | Peer] = {"ours": Ours(runs)}
    if options.hf:
        trainers["Hugging Face"] = HuggingFace(options.hf, data)
    if options.joey:
        trainers["JoeyNMT"] = JoeyNMT(options.joey, data)
    if options.only:
        trainers = {name: trainers[name] for name in options.only}
    kept = Kept(runs, data)
    first, *later = sorted(options.minutes)
    for number in range(3):  # in turns
        for contender, trainer in trainers.items():
            kept.measure(contender, list(SETTINGS[contender])[number], first, trainer)
    for minutes in later:
        for contender, trainer in trainers.items():
            kept.measure(contender, kept.best(contender, first).setting, minutes, trainer)
    best = {
        (contender, minutes): kept.best(contender, minutes)
        for minutes in options.minutes
        for contender in SETTINGS
        if kept.find(contender, minutes)
    }
    printed(best, data)


if __name__ == "__main__":
    main()
