"""Scores, what they stand beside, and what else is known of predictions."""

from __future__ import annotations

from pipelines.contracts.base import Contract

SCORES, SYSTEMS = "scores.json", "systems.json"
CLASSIFICATION, DIVERSITY = "classification.json", "diversity.json"
"""Files of an artifact of scores, each a list: of `Score`, `Comparison`, `Classification` and
`Variety`."""
TRADEOFF = "tradeoff.json"
"""File of an artifact of scores: a list of `Tradeoff`."""
LATENT = "latent.json"
"""File of a model with a latent variable: a list of `LatentExchange`."""
WISHES = "wishes.json"
"""File of a model with a head for wishes: a list of `WishKnown`."""


class Score(Contract):
    """A corpus score of a task and split, over all its rows or a slice of them."""

    task: str
    split: str
    slice: dict[str, str] | None = None
    """Column to value; None for all rows."""
    metric: str
    value: float
    signature: str = ""
    """How it was computed, so that it can be computed again."""
    n: int = 0
    """Number of segments."""
    ci95: tuple[float, float] | None = None
    """The ends of the 95% interval."""
    baseline: str | None = None
    """The name of the other system that has this score; None for the run's own score."""

    @property
    def own(self) -> bool:
        """Whether it is the run's own score."""
        return not self.baseline

    @property
    def whole(self) -> bool:
        """Whether it is over all rows."""
        return not self.slice


class Comparison(Contract):
    """A score and a baseline's score, on the segments that both have."""

    task: str
    split: str
    slice: dict[str, str] | None = None
    n: int
    """Number of our segments."""
    common: int
    """Number of segments that both have."""
    changed: int
    """Number of those segments whose outputs differ."""
    metric: str
    value: float
    baseline: float
    difference: float
    ci95: tuple[float, float]
    """The 95% interval of the difference."""
    p: float
    """From paired approximate randomisation; verdicts and gates use this one."""
    p_bootstrap: float
    p_randomisation: float
    """As sacreBLEU prints them."""
    system: str | None = None
    """The other system; None for a baseline run."""

    @property
    def whole(self) -> bool:
        """Whether it is over all rows."""
        return not self.slice


class LabelScores(Contract):
    """How well one label is recognised, each from 0 to 1."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int
    """Rows whose reference it is."""
    training_rows: int = 0


class Bin(Contract):
    """Rows whose confidence lies in the same range."""

    rows: int
    confidence: float
    """The mean."""
    accuracy: float


class Classification(Contract):
    """What a classifier confuses, and how far its confidence can be trusted."""

    task: str
    split: str
    labels: tuple[str, ...] | None = None
    matrix: tuple[tuple[int, ...], ...] | None = None
    """Rows by reference (down) and hypothesis (across); the last column is for what is no label.
    None where no metric of labels was asked for."""
    by_label: tuple[LabelScores, ...] | None = None
    calibration: tuple[Bin, ...] | None = None
    """None where there are no probabilities."""


class Gain(Contract):
    """How far several outputs are better than those of another way to make them."""

    metric: str
    difference: float
    ci95: tuple[float, float]
    p: float


class Variety(Contract):
    """Several outputs for each source: how good they are, and how much they differ."""

    task: str
    kind: str
    """How they were made: `mean` (one, greedily), `latent`, `sampling` (tokens), `likeliest` (the
    most probable of those that were drawn), `beam` (n-best) or `selection`."""
    temperature: float
    weight: float | None = None
    """Of variety, for a selection."""
    rows: int
    samples: int
    """Outputs for each row."""
    drawn: int = 0
    """Outputs that were decoded for each row, to keep `samples`; 0 in results of before."""
    bleu: float | None = None
    """Mean over samples of the corpus BLEU of each; None where no reference has four words."""
    best_bleu: float | None = None
    """Corpus BLEU of each source's best output by sentence BLEU."""
    coverage: float | None = None
    """Mean over all references of the sentence BLEU of the output nearest to each."""
    distinct_1: float | None = None
    distinct_2: float | None = None
    self_bleu: float | None = None
    ci95: dict[str, tuple[float, float]] = {}
    """The ends of the 95% intervals by name of the figure, over sources."""
    beside: float | None = None
    """For a selection, the temperature of the token sampling with the nearest self-BLEU."""
    gains: tuple[Gain, ...] = ()
    """Over that sampling."""


class Tradeoff(Contract):
    """How often outputs have what was wished for, and how good they are. Rows are those with a
    reference that has it: there, it can be had."""

    task: str
    split: str
    wish: str
    value: str
    kind: str
    """How they were made: `plain` (no wish), `selected` (no wish, the best of several draws),
    `draws` (of the same, the best that has it as the judge says, which knows the answer), `wish`
    (greedily), `ranked` (the best of several draws with the wish, by the model's own head too, if
    it has one)."""
    strength: float
    rows: int
    drawn: int
    """Outputs that were decoded for each row."""
    met: float
    """Share of outputs that have it, from 0 to 1, as the judge says."""
    bleu: float | None = None
    """Against all references; None where no reference has four words."""
    ci95: dict[str, tuple[float, float]] = {}
    """The ends of the 95% intervals by name of the figure, over rows."""


class LatentExchange(Contract):
    """What held-out rows become if latents are exchanged between them, in `latent.json` of a
    model."""

    task: str
    rows: int
    changed: float
    """Share of the rows whose output changes."""
    bleu: float
    """With the latent at its prior's mean."""
    bleu_own: float
    """With that of the row's own target."""
    bleu_exchanged: float
    """With that of another row."""


class WishKnown(Contract):
    """A wish that a model's head weighs, and how well it judges held-out targets."""

    wish: str
    values: tuple[str, ...]
    rows: int
    """Held-out rows whose value is known."""
    accuracy: float
    """Share of them that have the value which the head finds likeliest, or are near enough to it
    (`within`), from 0 to 1."""
    commonest: float
    """The share that has the commonest value, or is near it: the accuracy of knowing nothing."""
