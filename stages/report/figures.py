"""Confusion matrices, learning curves and quality against variety, as the shapes of an SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.contracts.reports import Point
from pipelines.contracts.scores import Classification, Variety

CELL, LABEL_SPACE, OVERHANG = 26, 84, 44
"""Side of a square, room for the labels beside and above, and beyond the last of those above."""
CHART_WIDTH, CHART_HEIGHT, MARGIN = 640, 220, 44


@dataclass(frozen=True)
class Square:
    x: int
    y: int
    share: float
    """Of the rows with this reference, from 0 to 1."""
    count: int
    right: bool


@dataclass(frozen=True)
class Label:
    """A text beside an axis."""

    at: float
    """Along the axis."""
    name: str


@dataclass(frozen=True)
class ConfusionFigure:
    """Squares of a confusion matrix, darker where more of a reference's rows are."""

    width: int
    height: int
    cell: int
    space: int
    squares: list[Square]
    columns: list[Label]
    rows: list[Label]


@dataclass(frozen=True)
class Matrix:
    """What the page shows of a classification."""

    entry: Classification
    figure: ConfusionFigure | None


@dataclass(frozen=True)
class Spot:
    """A point with a text of its own."""

    x: float
    y: float
    title: str


@dataclass(frozen=True)
class Line:
    name: str
    last: str
    """Its last value, where that means something."""
    points: str
    """As `polyline` takes them."""
    spots: tuple[Spot, ...] = ()


@dataclass(frozen=True)
class Chart:
    """Figures over something, such as those of a learning curve over steps."""

    title: str
    across: str
    """What the horizontal axis is."""
    width: int
    height: int
    ticks: list[Label]
    steps: list[Label]
    lines: list[Line]


def matrices(classification: Sequence[Classification]) -> list[Matrix]:
    return [Matrix(entry, confusion_figure(entry)) for entry in classification]


def confusion_figure(entry: Classification) -> ConfusionFigure | None:
    """None where no matrix was counted."""
    if entry.matrix is None or entry.labels is None:
        return None
    squares = []
    for down, row in enumerate(entry.matrix):
        total = sum(row)
        for across, count in enumerate(row):
            if count:
                x, y = LABEL_SPACE + across * CELL, LABEL_SPACE + down * CELL
                squares.append(Square(x, y, round(count / total, 3), count, down == across))
    other = any(row[-1] for row in entry.matrix)
    columns = [*entry.labels, *(["no label"] if other else [])]

    def labels(names: Sequence[str]) -> list[Label]:
        return [
            Label(LABEL_SPACE + number * CELL + CELL / 2, name) for number, name in enumerate(names)
        ]

    return ConfusionFigure(
        width=LABEL_SPACE + len(columns) * CELL + OVERHANG,
        height=LABEL_SPACE + len(entry.labels) * CELL + 4,
        cell=CELL,
        space=LABEL_SPACE,
        squares=squares,
        columns=labels(columns),
        rows=labels(entry.labels),
    )


def charts(curve: Sequence[Point]) -> list[Chart]:
    """Loss, validation scores of every task, and what the latent variable does, over steps."""
    names = list(dict.fromkeys(name for point in curve for name in point))

    def beginning(*prefixes: str) -> list[str]:
        return [name for name in names if name.startswith(prefixes)]

    wanted = [
        ("Loss (nats a token)", ["train_loss", "valid_loss"]),
        ("Validation BLEU", beginning("valid_bleu.")),
        ("Validation accuracy (%)", beginning("valid_accuracy.")),
        ("Latent divergence (nats)", beginning("divergence")),
        ("Latent dimensions above 0.05 nats", beginning("informative_dimensions")),
        ("Learning rate", ["learning_rate"]),
    ]
    return [_chart(title, lines, curve) for title, lines in wanted if curve and lines]


def _chart(title: str, names: Sequence[str], curve: Sequence[Point]) -> Chart:
    steps = [point["step"] for point in curve]
    values = [point[name] for point in curve for name in names if name in point]
    low, high = (0.0, max(values)) if "loss" not in names[0] else (min(values), max(values))
    span, last = (high - low) or 1.0, max(steps)

    def x(step: float) -> float:
        return round(MARGIN + step / last * (CHART_WIDTH - MARGIN - 10), 1)

    def y(value: float) -> float:
        share = (value - low) / span
        return round(CHART_HEIGHT - 24 - share * (CHART_HEIGHT - 40), 1)

    def line(name: str) -> Line:
        points = [(point["step"], point[name]) for point in curve if name in point]
        return Line(
            name.rpartition(".")[2].replace("_", " "),
            f"{points[-1][1]:.4g}",
            " ".join(f"{x(step)},{y(value)}" for step, value in points),
        )

    quarters = [part / 4 for part in range(5)]
    levels = [low + span * quarter for quarter in quarters]
    return Chart(
        title=title,
        across="training steps",
        width=CHART_WIDTH,
        height=CHART_HEIGHT,
        ticks=[Label(y(level), f"{level:.3g}") for level in levels],
        steps=[Label(x(last * quarter), f"{last * quarter:,.0f}") for quarter in quarters],
        lines=[line(name) for name in names],
    )


MADE = {
    "sampling": "tokens drawn",
    "selection": "selection",
    "latent": "latent drawn",
    "likeliest": "likeliest draws",
    "beam": "beam search",
}
"""How several outputs are made, in words: see `pipelines.contracts.scores.Variety`."""


def frontiers(entries: Sequence[Variety]) -> list[Chart]:
    """For each task, BLEU and the best outputs' BLEU against self-BLEU: what lies higher is better
    at equal variety, what lies further left varies more."""
    found = []
    for task in dict.fromkeys(entry.task for entry in entries):
        for name, title in (("bleu", "BLEU"), ("best_bleu", "best BLEU")):
            of_task = [
                entry
                for entry in entries
                if entry.task == task
                and entry.kind in MADE
                and entry.self_bleu is not None
                and getattr(entry, name) is not None
            ]
            if of_task:
                found.append(_frontier(f"{task}: {title} against self-BLEU", name, of_task))
    return found


def _frontier(title: str, name: str, entries: Sequence[Variety]) -> Chart:
    values = [float(getattr(entry, name)) for entry in entries]
    alike = [float(entry.self_bleu or 0) for entry in entries]
    low, high, left, right = min(values), max(values), min(alike), max(alike)

    def x(value: float) -> float:
        share = (value - left) / ((right - left) or 1.0)
        return round(MARGIN + 8 + share * (CHART_WIDTH - MARGIN - 26), 1)

    def y(value: float) -> float:
        return round(
            CHART_HEIGHT - 32 - (value - low) / ((high - low) or 1.0) * (CHART_HEIGHT - 52), 1
        )

    def line(kind: str) -> Line:
        spots = [
            Spot(
                x(across),
                y(value),
                f"{MADE[kind]}, temperature {entry.temperature:g}"
                + ("" if entry.weight is None else f", variety {entry.weight:g}")
                + f": {value:.1f} at self-BLEU {across:.1f}",
            )
            for entry, value, across in zip(entries, values, alike, strict=True)
            if entry.kind == kind
        ]
        points = " ".join(f"{spot.x},{spot.y}" for spot in spots)
        return Line(MADE[kind], "", points, tuple(spots))

    quarters = [part / 4 for part in range(5)]
    return Chart(
        title=title,
        across="self-BLEU",
        width=CHART_WIDTH,
        height=CHART_HEIGHT,
        ticks=[Label(y(low + q * (high - low)), f"{low + q * (high - low):.1f}") for q in quarters],
        steps=[
            Label(x(left + q * (right - left)), f"{left + q * (right - left):.0f}")
            for q in quarters
        ],
        lines=[line(kind) for kind in MADE if any(entry.kind == kind for entry in entries)],
    )
