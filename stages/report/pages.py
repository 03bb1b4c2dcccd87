"""The report as JSON, Markdown and one self-contained HTML page."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from model.modalities.known import MEDIA, MODALITIES
from pipelines.contracts.reports import REPORT, Content, Example, Lineage, Report
from pipelines.contracts.runs import RunRecord, StageRecord
from pipelines.contracts.scores import Comparison
from pipelines.contracts.shown import visible
from pipelines.store.files import write_json, write_text
from stages.measures.metrics import LOWER_IS_BETTER
from stages.report.figures import (
    MADE,
    MEETS,
    ceilings,
    charts,
    frontiers,
    matrices,
    tradeoff_charts,
)
from stages.report.score_tables import (
    baseline_rows,
    rivals,
    score_tables,
    slice_tables,
    system_tables,
)
from stages.report.tables import write_tables

SHOWN_REJECTS = 1000
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class GraphRow:
    """What was exported: sizes, how fast it loads, and what the gates found."""

    stage: str
    precision: str
    bytes: int
    bytes_fp32: int
    loading: float | None
    """Seconds."""
    stability: list[float | None]
    """The largest differences of a logit, see the page."""
    tokens_agree: int
    rows: int
    loss: float | None
    """What validation scores lose against fp32, the mean over tasks."""
    scores: list[tuple[str, float, float]]
    """Name, in fp32, in this precision."""


@dataclass(frozen=True)
class ExampleGroup:
    """Examples of a task and split, and which columns they need."""

    task: str
    split: str
    rows: list[Example]
    modalities: set[str]
    labels: bool


def write_pages(content: Content, record: RunRecord, folder: Path) -> None:
    """Writes `report.json`, `report.md`, `index.html` and the tables of one run."""
    report = Report.of(content, record)
    written = report.model_dump(
        mode="json",
        exclude_unset=True,
        exclude={"title": True, "examples": {"__all__": {"previews": True}}},
    )
    write_json(folder / REPORT, written)
    write_tables(report, folder / "tables")
    with (folder / "rejected.jsonl").open(encoding="utf-8") as file:
        rejects = [json.loads(line) for line in itertools.islice(file, SHOWN_REJECTS)]
    rejects.sort(key=lambda reject: (reject["stage"], reject["position"]))
    shown = {
        "report": report,
        "title": content.title or record.pipeline,
        "media": list(MEDIA.values()),
        "rejects": rejects,
        "rejected_total": sum(sum(reasons.values()) for reasons in content.rejected.values()),
        "charts": {name: charts(curve) for name, curve in content.curves.items()},
        "graphs": graph_rows(content.lineage, report.stages),
        "tables": score_tables(content.scores),
        "slices": slice_tables(content.scores),
        "baselines": baseline_rows(content.scores, content.systems),
        "systems": system_tables(content.scores, content.systems),
        "rivals": rivals(record, content.systems),
        "matrices": matrices(content.classification),
        "frontiers": frontiers(content.diversity),
        "tradeoffs": tradeoff_charts(content.tradeoff),
        "ceilings": ceilings(content.tradeoff),
        "made": MADE,
        "meets": MEETS,
        "figure_names": {"bleu": "BLEU", "best_bleu": "best BLEU"},
        "example_groups": grouped_examples(content.examples),
        "rates": {
            name: rate(stage, content.lineage.get(name)) for name, stage in report.stages.items()
        },
    }
    for name, target, finalize in (
        ("report.html", "index.html", seen),
        ("report.md", "report.md", markdown),
    ):
        environment = Environment(
            loader=FileSystemLoader(Path(__file__).parent / "templates"),
            autoescape=name.endswith(".html"),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            finalize=finalize,
        )
        environment.filters["digits"] = digits
        environment.filters["verdict"] = verdict
        environment.filters["small"] = lambda value: "–" if value is None else f"{value:.1e}"
        environment.filters["code"] = markdown_code
        write_text(folder / target, environment.get_template(name).render(**shown))


def seen(value: object) -> object:
    """What an expression of a template gives, with a visible sign for what cannot be seen. What a
    macro made went through here already."""
    if isinstance(value, Markup):
        return value
    return visible(value) if isinstance(value, str) else value


def markdown(value: object) -> object:
    """What an expression of the Markdown template gives; text has no meaning to Markdown, unless a
    filter made it."""
    if isinstance(value, Markup):
        return visible(value)
    return visible(markdown_cell(value)) if isinstance(value, str) else value


def digits(value: float | None) -> str:
    """A score for reading; `report.json` has every digit."""
    if value is None:
        return "–"
    return f"{value:.1f}" if abs(value) >= 1 else f"{value:.3f}"


def verdict(entry: Comparison) -> str:
    """The result of a comparison, at the usual 5%."""
    if not entry.changed:
        return "no difference"
    if entry.p >= SIGNIFICANT:
        return "not significant"
    lower_is_better = entry.metric in LOWER_IS_BETTER
    return "better" if (entry.difference > 0) != lower_is_better else "worse"


MARKDOWN = {ord(sign): f"&#{ord(sign)};" for sign in "&<>|[]*`\\~$"}
"""Signs that Markdown gives a meaning anywhere in a line."""
EMPHASIS = re.compile(r"(?<!\w)_|_(?!\w)")
"""Inside a word it has no meaning, as in the names of scores."""
LINK = re.compile(r"(?i)(\b[a-z]+):(?=//)|\b(www)\.")
"""What is a link without any sign around it."""


def markdown_cell(text: str) -> str:
    """Text that cannot break out of a Markdown table, nor become a link or a picture."""
    plain = EMPHASIS.sub("&#95;", " ".join(str(text).split()).translate(MARKDOWN))
    # Entities are read before addresses become links, so only something between breaks one.
    plain = plain.replace("@", "<!-- -->&#64;")
    return LINK.sub(lambda match: f"{match[1]}&#58;" if match[1] else f"{match[2]}&#46;", plain)


def markdown_code(text: str) -> Markup:
    """Text for between two backticks, where there are no entities."""
    return Markup(" ".join(str(text).split()).replace("`", "\u2019").replace("|", "\\|"))


def rate(stage: StageRecord, lineage: Lineage | None) -> str:
    """What a stage does in a second, from the run that made its result."""
    seconds = stage.made_in_seconds
    if not seconds or not stage.rows:
        return ""
    properties = lineage.properties if lineage else {}
    if "steps" in properties:
        return f"{properties['steps'] / seconds:.1f} steps/s"
    if stage.rows < 2:
        return ""
    tokens = f", {properties['tokens'] / seconds:,.0f} tokens/s" if "tokens" in properties else ""
    return f"{stage.rows / seconds:,.0f} rows/s{tokens}"


def graph_rows(lineage: Mapping[str, Lineage], stages: Mapping[str, StageRecord]) -> list[GraphRow]:
    """Every set of graphs."""
    rows = []
    for name, artifact in lineage.items():
        if artifact.kind != "graphs":
            continue
        properties = artifact.properties
        scores = properties.get("validation", {})
        before, after = scores.get("fp32", {}), scores.get(properties["precision"], {})
        measured = stages[name].measured if name in stages else {}
        rows.append(
            GraphRow(
                stage=name,
                precision=properties["precision"],
                bytes=properties["bytes"],
                bytes_fp32=properties.get("bytes_fp32") or properties["bytes"],
                loading=measured.get("loading_graphs"),
                stability=[
                    measured.get(f"{figure}_difference")
                    for figure in ("onnx_pytorch", "batch", "rerun")
                ],
                tokens_agree=properties["parity"]["tokens_agree"],
                rows=properties["parity"]["rows"],
                loss=properties.get("loss"),
                scores=[(score, before[score], after[score]) for score in before],
            )
        )
    return rows


def grouped_examples(examples: Sequence[Example]) -> list[ExampleGroup]:
    """Examples by task and split."""
    groups: dict[tuple[str, str], list[Example]] = {}
    for example in examples:
        groups.setdefault((example.task, example.split), []).append(example)
    return [
        ExampleGroup(
            task,
            split,
            rows,
            {
                name
                for name in MODALITIES
                for row in rows
                if name in row.previews or (name == "text" and row.text is not None)
            },
            any(row.labels is not None for row in rows),
        )
        for (task, split), rows in groups.items()
    ]
