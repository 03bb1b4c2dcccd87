"""Confusion matrices and learning curves as the shapes of an SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.contracts.reports import Point
from pipelines.contracts.scores import Classification

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
class Line:
    name: str
    last: str
    """Its last value."""
    points: str
    """As `polyline` takes them."""


@dataclass(frozen=True)
class Chart:
    """Figures of a learning curve over steps."""

    title: str
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
        ("Active latent units", beginning("active_units")),
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
        width=CHART_WIDTH,
        height=CHART_HEIGHT,
        ticks=[Label(y(level), f"{level:.3g}") for level in levels],
        steps=[Label(x(last * quarter), f"{last * quarter:,.0f}") for quarter in quarters],
        lines=[line(name) for name in names],
    )
