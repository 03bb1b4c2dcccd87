"""The report as JSON, Markdown and one self-contained HTML page."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipelines.files import write_json

SHOWN_REJECTS = 1000
CHART_WIDTH, CHART_HEIGHT, MARGIN = 640, 220, 44


def write_pages(content: Mapping[str, Any], record: Mapping[str, Any], folder: Path) -> None:
    """Writes `report.json`, `report.md` and `index.html` of one run."""
    stages = {
        name: {key: value for key, value in facts.items() if key != "parts"}
        for name, facts in record["stages"].items()
    }
    report = {
        **{key: value for key, value in content.items() if key != "title"},
        "pipeline": record["pipeline"],
        "run": record["run"],
        "started": record["started"],
        "status": record["status"],
        "seed": record["seed"],
        "machine": record["machine"],
        "gates": record["gates"],
        "stages": stages,
    }
    write_json(folder / "report.json", report)
    with (folder / "rejected.jsonl").open(encoding="utf-8") as file:
        rejects = [json.loads(line) for line in itertools.islice(file, SHOWN_REJECTS)]
    shown = {
        **report,
        "title": content["title"] or record["pipeline"],
        "rejects": rejects,
        "rejected_total": sum(sum(reasons.values()) for reasons in content["rejected"].values()),
        "charts": {name: charts(curve) for name, curve in content["curves"].items()},
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
    environment.filters["cell"] = markdown_cell
    for name, target in (("report.html", "index.html"), ("report.md", "report.md")):
        text = environment.get_template(name).render(**shown)
        temporary = folder / f".{target}.tmp"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(folder / target)


def digits(value: float | None) -> str:
    """A score for reading; `report.json` has every digit."""
    if value is None:
        return "–"
    return f"{value:.1f}" if abs(value) >= 1 else f"{value:.3f}"


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


def charts(curve: Sequence[Mapping[str, float]]) -> list[dict[str, Any]]:
    """Loss and, where there is one, validation BLEU over steps, as points of an SVG."""
    wanted = [("Loss (nats a token)", ["train_loss", "valid_loss"])]
    if any("valid_bleu" in point for point in curve):
        wanted.append(("Validation BLEU", ["valid_bleu"]))
    wanted.append(("Learning rate", ["learning_rate"]))
    return [_chart(title, names, curve) for title, names in wanted if curve]


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
                "name": name.replace("_", " "),
                "last": f"{[p[name] for p in curve if name in p][-1]:.4g}",
                "points": " ".join(f"{x(p['step'])},{y(p[name])}" for p in curve if name in p),
            }
            for name in names
        ],
    }
