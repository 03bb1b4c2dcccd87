"""Confusion matrices, learning curves and quality against variety, as the shapes of an SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pipelines.contracts.reports import Point
from pipelines.contracts.scores import Classification, Tradeoff, Variety

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
            points = [
                Made(
                    MADE[entry.kind],
                    entry.self_bleu,
                    float(getattr(entry, name)),
                    f"temperature {entry.temperature:g}"
                    + ("" if entry.weight is None else f", variety {entry.weight:g}"),
                )
                for entry in entries
                if entry.task == task
                and entry.kind in MADE
                and entry.self_bleu is not None
                and getattr(entry, name) is not None
            ]
            if points:
                title_of = f"{task}: {title} against self-BLEU"
                found.append(_frontier(title_of, "self-BLEU", points, list(MADE.values())))
    return found


MEETS = {
    "plain": "no wish",
    "selected": "no wish, selected from draws",
    "draws": "no wish, picked by the judge from draws",
    "wish": "wish, greedily",
    "ranked": "wish, selected from draws",
}
"""How wishes are met, in words: see `pipelines.contracts.scores.Tradeoff`."""


def tradeoff_charts(entries: Sequence[Tradeoff]) -> list[Chart]:
    """For each value of each wish, BLEU against the share of outputs that have it: what lies
    further right meets the wish more often, what lies higher loses less."""
    found = []
    for place in dict.fromkeys(map(_place, entries)):
        points = [
            Made(
                MEETS[entry.kind],
                100 * entry.met,
                entry.bleu,
                f"strength {entry.strength:g}" if entry.strength else f"{entry.drawn} decoded",
            )
            for entry in entries
            if _place(entry) == place and entry.kind in MEETS and entry.bleu is not None
        ]
        if points:
            task, split, wish, value = place
            title = f"{task} ({split}), {wish} {value}: BLEU against percent met"
            found.append(_frontier(title, "percent met", points, list(MEETS.values())))
    return found


def _place(entry: Tradeoff) -> tuple[str, str, str, str]:
    return entry.task, entry.split, entry.wish, entry.value


LOSS = 2.0
"""BLEU that meeting a wish may cost."""


BESIDE = {"wish": "plain", "ranked": "selected"}
"""What is made in the same way without a wish."""


def ceilings(entries: Sequence[Tradeoff]) -> list[Tradeoff]:
    """For each value of each wish, and way of meeting it, the greatest strength up to which all
    cost at most `LOSS` BLEU against the same without a wish, if there is one."""
    found = []
    for place in dict.fromkeys(map(_place, entries)):
        here = [entry for entry in entries if _place(entry) == place]
        for kind, other in BESIDE.items():
            without = next((entry.bleu for entry in here if entry.kind == other), None)
            tried = sorted(
                (entry for entry in here if entry.kind == kind), key=lambda entry: entry.strength
            )
            cheap: list[Tradeoff] = []
            for entry in tried:
                if without is None or entry.bleu is None or entry.bleu < without - LOSS:
                    break
                cheap.append(entry)
            found += cheap[-1:]
    return found


class Made(NamedTuple):
    """Outputs that were made in one way, at their place on a frontier."""

    kind: str
    across: float
    up: float
    note: str


def _frontier(title: str, across: str, points: Sequence[Made], kinds: Sequence[str]) -> Chart:
    values = [point.up for point in points]
    places = [point.across for point in points]
    low, high, left, right = min(values), max(values), min(places), max(places)

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
                x(point.across),
                y(point.up),
                f"{kind}, {point.note}: {point.up:.1f} at {across} {point.across:.1f}",
            )
            for point in points
            if point.kind == kind
        ]
        drawn = " ".join(f"{spot.x},{spot.y}" for spot in spots)
        return Line(kind, "", drawn, tuple(spots))

    quarters = [part / 4 for part in range(5)]
    return Chart(
        title=title,
        across=across,
        width=CHART_WIDTH,
        height=CHART_HEIGHT,
        ticks=[Label(y(low + q * (high - low)), f"{low + q * (high - low):.1f}") for q in quarters],
        steps=[
            Label(x(left + q * (right - left)), f"{left + q * (right - left):.0f}")
            for q in quarters
        ],
        lines=[line(kind) for kind in kinds if any(point.kind == kind for point in points)],
    )
