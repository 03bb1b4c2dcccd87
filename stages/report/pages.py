"""The report as JSON, Markdown and one self-contained HTML page."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from model.modalities.known import MEDIA, MODALITIES
from pipelines.store.files import write_json, write_text
from stages.report.tables import write_tables
from stages.score.metrics import LOWER_IS_BETTER

FORMAT = 1
"""Of report.json."""
SHOWN_REJECTS = 1000
SIGNIFICANT = 0.05
CHART_WIDTH, CHART_HEIGHT, MARGIN = 640, 220, 44


def write_pages(content: Mapping[str, Any], record: Mapping[str, Any], folder: Path) -> None:
    """Writes `report.json`, `report.md` and `index.html` of one run."""
    stages = {
        name: {key: value for key, value in facts.items() if key != "parts"}
        for name, facts in record["stages"].items()
    }
    media = tuple(MEDIA)
    report = {
        "format": FORMAT,
        **{key: value for key, value in content.items() if key != "title"},
        "examples": [
            {key: value for key, value in example.items() if key not in media}
            for example in content["examples"]
        ],
        "pipeline": record["pipeline"],
        "run": record["run"],
        "started": record["started"],
        "status": record["status"],
        "seed": record["seed"],
        "machine": record["machine"],
        "gates": record["gates"],
        "baseline": record["baseline"],
        "comparison": record["comparison"],
        "stages": stages,
    }
    write_json(folder / "report.json", report)
    write_tables(report, folder / "tables")
    with (folder / "rejected.jsonl").open(encoding="utf-8") as file:
        rejects = [json.loads(line) for line in itertools.islice(file, SHOWN_REJECTS)]
    shown = {
        **report,
        "title": content["title"] or record["pipeline"],
        "media": list(MEDIA.values()),
        "rejects": rejects,
        "rejected_total": sum(sum(reasons.values()) for reasons in content["rejected"].values()),
        "charts": {name: charts(curve) for name, curve in content["curves"].items()},
        "graphs": graph_rows(content["lineage"], stages),
        "tables": score_tables(content["scores"]),
        "slices": slice_tables(content["scores"]),
        "baselines": baseline_rows(content["scores"], content["systems"]),
        "beside": systems_tables(content["scores"], content["systems"]),
        "versus": versus(record, content["systems"]),
        "matrices": [
            {**entry, "figure": confusion_figure(entry)} for entry in content["classification"]
        ],
        "example_groups": grouped_examples(content["examples"]),
        "rates": {
            name: rate(facts, content["lineage"].get(name)) for name, facts in stages.items()
        },
    }
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=lambda name: name is not None and name.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["digits"] = digits
    environment.filters["verdict"] = verdict
    environment.filters["small"] = lambda value: "–" if value is None else f"{value:.1e}"
    environment.filters["cell"] = markdown_cell
    for name, target in (("report.html", "index.html"), ("report.md", "report.md")):
        write_text(folder / target, environment.get_template(name).render(**shown))


def digits(value: float | None) -> str:
    """A score for reading; `report.json` has every digit."""
    if value is None:
        return "–"
    return f"{value:.1f}" if abs(value) >= 1 else f"{value:.3f}"


def verdict(entry: Mapping[str, Any]) -> str:
    """What a comparison with the baseline comes to, at the usual 5%."""
    if not entry["changed"]:
        return "no difference"
    if entry["p"] >= SIGNIFICANT:
        return "not significant"
    lower_is_better = entry["metric"] in LOWER_IS_BETTER
    return "better" if (entry["difference"] > 0) != lower_is_better else "worse"


def markdown_cell(text: str) -> str:
    """Text that cannot break out of a Markdown table."""
    escaped = str(text).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
    return " ".join(escaped.split())


def rate(facts: Mapping[str, Any], lineage: Mapping[str, Any] | None) -> str:
    """What a stage does in a second, from the run that made its result."""
    seconds = facts.get("made_in_seconds")
    if not seconds or not facts.get("rows"):
        return ""
    properties = lineage["properties"] if lineage else {}
    if "steps" in properties:
        return f"{properties['steps'] / seconds:.1f} steps/s"
    if facts["rows"] < 2:
        return ""
    tokens = f", {properties['tokens'] / seconds:,.0f} tokens/s" if "tokens" in properties else ""
    return f"{facts['rows'] / seconds:,.0f} rows/s{tokens}"


def graph_rows(
    lineage: Mapping[str, Any], stages: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """What was exported: sizes, how fast it loads, and what the gates found."""
    rows = []
    for name, facts in lineage.items():
        if facts["kind"] != "graphs":
            continue
        properties = facts["properties"]
        scores = properties.get("validation", {})
        before, after = scores.get("fp32", {}), scores.get(properties["precision"], {})
        measured = stages.get(name, {}).get("measured", {})
        rows.append(
            {
                "stage": name,
                "precision": properties["precision"],
                "bytes": properties["bytes"],
                "bytes_fp32": properties.get("bytes_fp32", properties["bytes"]),
                "loading": measured.get("loading_graphs"),
                "stability": [
                    measured.get(f"{figure}_difference")
                    for figure in ("onnx_pytorch", "batch", "rerun")
                ],
                "parity": properties["parity"],
                "loss": properties.get("loss"),
                "scores": [(score, before[score], after[score]) for score in before],
            }
        )
    return rows


MAIN = ("accuracy", "bleu", "exact_match")
"""What stands for a task where there is room for one score: the first of these that it has."""


def main_metric(metrics: Sequence[str]) -> str:
    return next((metric for metric in MAIN if metric in metrics), metrics[0])


def score_tables(scores: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each task and split its scores over the whole, the main one first among them."""
    tables: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for score in scores:
        if not score["slice"] and not score.get("baseline"):
            tables.setdefault((score["task"], score["split"]), []).append(score)
    found = []
    for (task, split), rows in tables.items():
        wanted = main_metric([row["metric"] for row in rows])
        main = next(row for row in rows if row["metric"] == wanted)
        found.append({"task": task, "split": split, "main": main, "scores": rows})
    return found


def versus(record: Mapping[str, Any], systems: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the scores stand beside: the baseline run, and other systems."""
    found = [{"kind": "run", "name": record["baseline"], "entries": record["comparison"]}]
    for name in dict.fromkeys(entry["system"] for entry in systems):
        entries = [entry for entry in systems if entry["system"] == name]
        found.append({"kind": "system", "name": name, "entries": entries})
    for one in found:
        same = [entry for entry in one["entries"] if not entry["changed"] and not entry["slice"]]
        one["same"] = list(dict.fromkeys((e["task"], e["split"], e["common"]) for e in same))
        one["any"] = bool(one["entries"])
        one["entries"] = [entry for entry in one["entries"] if entry["changed"]]
    return [one for one in found if one["any"]]


def systems_tables(
    scores: Sequence[Mapping[str, Any]], systems: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Ours and all other systems side by side, one table for each task and split: systems down,
    metrics across, each with its interval and with p of its difference from ours, as sacreBLEU
    prints several systems."""
    names = list(dict.fromkeys(entry["system"] for entry in systems))
    tested = {
        (entry["task"], entry["split"], entry["metric"], entry["system"]): entry
        for entry in systems
        if not entry["slice"]
    }
    whole = [score for score in scores if not score["slice"]]
    found = []
    for task, split in dict.fromkeys((entry["task"], entry["split"]) for entry in systems):
        of_task = [score for score in whole if (score["task"], score["split"]) == (task, split)]
        theirs = {(score.get("baseline"), score["metric"]): score for score in of_task}
        known = {metric for name, metric in theirs if name in names}
        metrics = [metric for name, metric in theirs if name is None and metric in known]
        rows = []
        for name in (None, *names):
            cells = [
                {"score": theirs.get((name, m)), "test": tested.get((task, split, m, name))}
                for m in metrics
            ]
            if any(cell["score"] for cell in cells):
                rows.append({"name": name, "cells": cells})
        found.append({"task": task, "split": split, "metrics": metrics, "rows": rows})
    return found


def baseline_rows(
    scores: Sequence[Mapping[str, Any]], systems: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Every baseline's score beside the model's own on the same task, split and metric; systems
    have a table of their own."""
    names = {entry["system"] for entry in systems}
    return [
        {
            "baseline": score,
            "model": next(
                (
                    own
                    for own in scores
                    if not own.get("baseline")
                    and not own["slice"]
                    and all(own[key] == score[key] for key in ("task", "split", "metric"))
                ),
                None,
            ),
        }
        for score in scores
        if score.get("baseline") and score["baseline"] not in names
    ]


def slice_tables(scores: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Scores by slice. A slice of one column has its values down and the metrics across, a slice
    of two columns their values down and across, for the task's main metric."""
    groups: dict[tuple[str, str, tuple[str, ...]], list[Mapping[str, Any]]] = {}
    for score in scores:
        if score["slice"]:
            key = (score["task"], score["split"], tuple(score["slice"]))
            groups.setdefault(key, []).append(score)
    tables = []
    for (task, split, names), rows in groups.items():
        metrics = list(dict.fromkeys(row["metric"] for row in rows))
        table = {"task": task, "split": split, "names": names, "metrics": metrics}
        if len(names) == 2:
            metrics = [main_metric(metrics)]
            rows = [row for row in rows if row["metric"] == metrics[0]]
            first, second = names
            across = sorted({row["slice"][second] for row in rows}, key=lambda v: (len(v), v))
            cells = {(row["slice"][first], row["slice"][second]): row for row in rows}
            table |= {"metrics": metrics, "columns": across}
        else:
            cells = {(" · ".join(row["slice"].values()), row["metric"]): row for row in rows}
            table |= {"columns": metrics}
        down = list(dict.fromkeys(name for name, _ in cells))
        table["rows"] = [
            {"name": name, "cells": [cells.get((name, column)) for column in table["columns"]]}
            for name in down
        ]
        tables.append(table)
    return tables


CELL, LABEL_SPACE, OVERHANG = 26, 84, 44
"""Side of a square, room for the labels beside and above, and beyond the last of those above."""


def confusion_figure(entry: Mapping[str, Any]) -> dict[str, Any] | None:
    """Squares of a confusion matrix, darker where more of a reference's rows are."""
    if "matrix" not in entry:
        return None
    squares = []
    for down, row in enumerate(entry["matrix"]):
        total = sum(row)
        for across, count in enumerate(row):
            if count:
                squares.append(
                    {
                        "x": LABEL_SPACE + across * CELL,
                        "y": LABEL_SPACE + down * CELL,
                        "share": round(count / total, 3),
                        "count": count,
                        "right": down == across,
                    }
                )
    labels = entry["labels"]
    other = any(row[-1] for row in entry["matrix"])
    columns = [*labels, *(["no label"] if other else [])]
    return {
        "width": LABEL_SPACE + len(columns) * CELL + OVERHANG,
        "height": LABEL_SPACE + len(labels) * CELL + 4,
        "cell": CELL,
        "space": LABEL_SPACE,
        "squares": squares,
        "columns": [
            {"at": LABEL_SPACE + place * CELL + CELL / 2, "name": name}
            for place, name in enumerate(columns)
        ],
        "rows": [
            {"at": LABEL_SPACE + place * CELL + CELL / 2, "name": name}
            for place, name in enumerate(labels)
        ],
    }


def grouped_examples(examples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Examples by task and split, and which columns they need."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for example in examples:
        groups.setdefault((example["task"], example["split"]), []).append(example)
    return [
        {
            "task": task,
            "split": split,
            "rows": rows,
            **{
                name: any(row.get(name) is not None for row in rows)
                for name in (*MODALITIES, "labels")
            },
        }
        for (task, split), rows in groups.items()
    ]


def charts(curve: Sequence[Mapping[str, float]]) -> list[dict[str, Any]]:
    """Loss, validation scores of every task, and what the latent variable does, over steps, as
    points of an SVG."""
    names = list(dict.fromkeys(name for point in curve for name in point))

    def beginning(*prefixes: str) -> list[str]:
        return [name for name in names if name.startswith(prefixes)]

    wanted = [
        ("Loss (nats a token)", ["train_loss", "valid_loss"]),
        ("Validation BLEU", beginning("valid_bleu.")),
        ("Validation accuracy (%)", beginning("valid_accuracy.")),
        ("Latent divergence (nats)", beginning("divergence")),
        ("Active latent units", beginning("active_units")),
        ("Learning rate", ["learning_rate"]),
    ]
    return [_chart(title, lines, curve) for title, lines in wanted if curve and lines]


def _chart(
    title: str, names: Sequence[str], curve: Sequence[Mapping[str, float]]
) -> dict[str, Any]:
    steps = [point["step"] for point in curve]
    values = [point[name] for point in curve for name in names if name in point]
    low, high = (0.0, max(values)) if "loss" not in names[0] else (min(values), max(values))
    span, last = (high - low) or 1.0, max(steps)

    def x(step: float) -> float:
        return round(MARGIN + step / last * (CHART_WIDTH - MARGIN - 10), 1)

    def y(value: float) -> float:
        share = (value - low) / span
        return round(CHART_HEIGHT - 24 - share * (CHART_HEIGHT - 40), 1)

    ticks = [low + span * part / 4 for part in range(5)]
    return {
        "title": title,
        "width": CHART_WIDTH,
        "height": CHART_HEIGHT,
        "ticks": [{"y": y(tick), "label": f"{tick:.3g}"} for tick in ticks],
        "steps": [
            {"x": x(last * part / 4), "label": f"{last * part / 4:,.0f}"} for part in range(5)
        ],
        "lines": [
            {
                "name": name.rpartition(".")[2].replace("_", " "),
                "last": f"{[p[name] for p in curve if name in p][-1]:.4g}",
                "points": " ".join(f"{x(p['step'])},{y(p[name])}" for p in curve if name in p),
            }
            for name in names
        ],
    }
