"""Beam search, constraints and sampling, compared with exhaustive search and the distribution."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch

from exports.decoding.beam_search import BeamSearch, Stop, beam_search
from exports.decoding.constraints import Constraints
from exports.decoding.forced import force
from exports.decoding.greedy import greedy
from exports.decoding.hypotheses import Hypothesis, log_softmax
from exports.decoding.sampling import Sampling, draw_tokens
from exports.decoding.session import SessionStepper
from exports.decoding.stepper import Best, Source, Stepper
from exports.decoding.torch_stepper import TorchStepper
from exports.making.graphs import export_graphs
from model.batching import Ragged
from model.configuration import LstmConfig, TransformerConfig
from model.contract import EncoderDecoder
from model.modalities.sources import text_sizes
from model.saved.folder import build
from model.vocabulary import EOS
from model.wishes import Wishes

VOCABULARY = 7
WORDS = [token for token in range(VOCABULARY) if token != EOS]
ROUNDING = 1e-4
"""Tolerance for fp32 logits, summed over a few tokens in different batches."""

STOPS: tuple[Stop, ...] = ("likely", "bound")


@pytest.fixture(scope="module")
def model() -> EncoderDecoder:
    torch.manual_seed(11)
    config = TransformerConfig(layers=1, width=16, heads=2, max_length=24)
    built = build(config, text_sizes(20, VOCABULARY)).eval()
    bias = built.get_parameter("output_bias")
    with torch.no_grad():
        # Depends on its source and is unsure, so that hypotheses are close and overtake each other.
        built.get_parameter("target_embedding.weight").mul_(2)
        bias[EOS] = 1.0
        for name, parameter in built.named_parameters():
            if "source_embedding" in name or "cross" in name:
                parameter.mul_(3)
    return built


@pytest.fixture(scope="module")
def stepper(model: EncoderDecoder) -> Stepper:
    return TorchStepper(model)


@pytest.fixture(scope="module")
def source() -> Ragged:
    random = np.random.default_rng(0)
    rows = [[*random.integers(4, 20, random.integers(1, 12)).tolist(), EOS] for _ in range(40)]
    return Ragged.of(rows)


def batch(source: Ragged, rows: np.ndarray) -> dict[str, np.ndarray]:
    return {"text": source.padded(rows)}


ALL = np.arange(40)


def search(
    stepper: Stepper, source: Ragged, rows: np.ndarray, beam: BeamSearch, limit: int = 8
) -> list[list[Hypothesis]]:
    return beam_search(stepper, batch(source, rows), np.full(len(rows), limit), beam)


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_a_beam_of_one_is_greedy(stepper: Stepper, source: Ragged, penalty: float) -> None:
    limits = np.arange(40) % 9
    beams = beam_search(stepper, batch(source, ALL), limits, BeamSearch(1, penalty))
    expected = greedy(stepper, batch(source, ALL), limits)
    assert {row.finished for row in expected} == {True, False}
    for (hypothesis,), reference in zip(beams, expected, strict=True):
        assert (hypothesis.tokens, hypothesis.finished) == (reference.tokens, reference.finished)
        assert hypothesis.score == pytest.approx(reference.score, abs=ROUNDING)


@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.0, 2.0])
def test_a_wide_beam_finds_what_exhaustive_search_finds(
    stepper: Stepper, source: Ragged, penalty: float
) -> None:
    """All 259 targets of up to three tokens, scored by forced decoding, are the reference."""
    targets = [
        [*words, EOS] for length in range(4) for words in itertools.product(WORDS, repeat=length)
    ]
    assert len(targets) == 259
    beam = BeamSearch(size=1600, length_penalty=penalty, best=5, stop="bound")
    for row in range(6):
        rows = np.array([row])
        scored = force(stepper, batch(source, rows), targets, of_row=len(targets))
        normalized = np.array([beam.normalized(s.score, s.tokens) for s in scored])
        order = np.argsort(-normalized)[:5]
        (hypotheses,) = search(stepper, source, rows, beam, limit=4)
        assert [[*h.tokens, EOS] for h in hypotheses] == [targets[number] for number in order]
        # So it is not worse than greedy decoding, by the same score.
        (greedy_hypothesis,) = greedy(stepper, batch(source, rows), np.array([4]))
        if greedy_hypothesis.finished:
            theirs = beam.normalized(greedy_hypothesis.score, len(greedy_hypothesis.tokens) + 1)
            ours = beam.normalized(hypotheses[0].score, len(hypotheses[0].tokens) + 1)
            assert ours >= theirs - ROUNDING


@pytest.mark.parametrize("stop", STOPS)
def test_the_best_are_sorted_different_and_scored_as_forced(
    stepper: Stepper, source: Ragged, stop: Stop
) -> None:
    beam = BeamSearch(size=4, best=4, stop=stop)
    several = 0
    for row, hypotheses in enumerate(search(stepper, source, ALL, beam)):
        finished = [h for h in hypotheses if h.finished]
        assert len({tuple(h.tokens) for h in finished}) == len(finished)
        assert hypotheses[: len(finished)] == finished
        normalized = [float(beam.normalized(h.score, len(h.tokens) + 1)) for h in finished]
        assert normalized == sorted(normalized, reverse=True)
        several += len(finished) > 1
        targets = [[*h.tokens, EOS] for h in finished]
        if targets:
            row_source = batch(source, np.array([row]))
            forced = force(stepper, row_source, targets, of_row=len(targets))
            assert [h.score for h in finished] == pytest.approx(
                [f.score for f in forced], abs=ROUNDING
            )
    assert several > 10


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_what_a_recurrent_model_carries_goes_with_its_hypothesis(
    source: Ragged, tmp_path: Path, kind: str
) -> None:
    torch.manual_seed(5)
    model = build(LstmConfig(width=16, max_length=24), text_sizes(20, VOCABULARY)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    stepper: Stepper = TorchStepper(model)
    if kind == "onnx":
        export_graphs(model, tmp_path)
        stepper = SessionStepper(tmp_path)
    crossed = 0
    for row, best in zip(ALL, search(stepper, source, ALL, BeamSearch(3, best=3)), strict=True):
        targets = [
            [*hypothesis.tokens, EOS] if hypothesis.finished else hypothesis.tokens
            for hypothesis in best
        ]
        row_source = batch(source, np.array([row]))
        for hypothesis, target in zip(best, targets, strict=True):
            (forced,) = force(stepper, row_source, [target])
            assert forced.score == pytest.approx(hypothesis.score, abs=ROUNDING)
        crossed += best[0].tokens[:1] != best[-1].tokens[:1]
    assert crossed > 5


class Sure:
    """A stepper that is sure of three words, number 4 each. After other first words, to which it
    gives a little, it is sure of the end."""

    attentive, latent, stride, wishes = False, 0, 1, Wishes()

    def start(self, source: Source, noise: np.ndarray | None = None) -> None:
        return None

    def best(self, state: Any, tokens: np.ndarray, position: int, count: int) -> tuple[Best, Any]:
        chances = np.full((*tokens.shape, VOCABULARY), 1e-9)
        if position == 0:
            chances[..., [4, 3, 5, 6]] = [0.94, 0.02, 0.02, 0.02]
        else:
            sure = (tokens == 4) & (position < 3)
            chances[sure] += np.where(np.arange(VOCABULARY) == 4, 0.96, 0)
            chances[sure, EOS] = 0.04
            chances[~sure, EOS] = 1
        gains = np.log(chances / chances.sum(-1, keepdims=True))
        order = np.argsort(-gains, axis=-1, kind="stable")[..., :count]
        return Best(order, np.take_along_axis(gains, order, axis=-1)), state

    def keep(self, state: Any, rows: np.ndarray) -> Any:
        return state

    reorder = keep


@pytest.mark.parametrize("stop", STOPS)
def test_what_the_model_is_sure_of_is_not_lost_to_what_ends_sooner(
    source: Ragged, stop: Stop
) -> None:
    """Four hypotheses have finished before it, with a fiftieth of its probability at most."""
    stepper: Any = Sure()
    for (hypothesis,) in search(stepper, source, ALL[:3], BeamSearch(size=4, stop=stop)):
        assert hypothesis.tokens == [4, 4, 4]
        assert hypothesis.finished


def test_a_bound_is_never_worse_than_stopping_where_it_is_likely(
    stepper: Stepper, source: Ragged
) -> None:
    first, bound = (
        search(stepper, source, ALL, BeamSearch(4, 2.0, stop=stop), limit=12) for stop in STOPS
    )
    better = 0
    for (early,), (late,) in zip(first, bound, strict=True):
        if early.finished:
            scores = [
                BeamSearch(4, 2.0).normalized(h.score, len(h.tokens) + 1) for h in (early, late)
            ]
            assert scores[1] >= scores[0] - ROUNDING
            better += scores[1] > scores[0] + ROUNDING
    assert better


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
def test_stopping_at_the_bound_loses_nothing(
    stepper: Stepper, source: Ragged, penalty: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compared with the same search that continues to the limit."""
    beam = BeamSearch(size=4, length_penalty=penalty, best=2, stop="bound")
    stopped = search(stepper, source, ALL, beam, limit=16)
    monkeypatch.setattr(
        "exports.decoding.beam_search._hopes", lambda _, scores, *__: np.full(len(scores), np.inf)
    )
    whole = search(stepper, source, ALL, beam, limit=16)
    assert [[h.tokens for h in row] for row in stopped] == [
        [h.tokens for h in row] for row in whole
    ]
    assert sum(row[0].finished for row in whole) > 20


def test_any_batch_is_a_batch_of_one(stepper: Stepper, source: Ragged) -> None:
    beam = BeamSearch(size=3, best=3)
    together = search(stepper, source, ALL, beam)
    for row in ALL:
        (alone,) = search(stepper, source, ALL[row : row + 1], beam)
        assert [h.tokens for h in alone] == [h.tokens for h in together[row]]


def test_onnx_finds_what_pytorch_finds(
    model: EncoderDecoder, source: Ragged, tmp_path: Path
) -> None:
    export_graphs(model, tmp_path)
    beam = BeamSearch(size=4, best=2)
    ours = search(TorchStepper(model), source, ALL, beam)
    theirs = search(SessionStepper(tmp_path), source, ALL, beam)
    assert [[h.tokens for h in row] for row in ours] == [[h.tokens for h in row] for row in theirs]


PREFIXES = [[5, 5, 4][: row % 4] for row in range(40)]


@pytest.mark.parametrize("kind", ["greedy", "sampling", "beam"])
def test_constraints_hold(stepper: Stepper, source: Ragged, kind: str) -> None:
    allowed = np.zeros(VOCABULARY, dtype=bool)
    allowed[[3, 4, 6]] = True
    limits = np.full(40, 10)

    def run(rules: Constraints) -> list[Hypothesis]:
        if kind == "beam":
            beams = beam_search(stepper, batch(source, ALL), limits, BeamSearch(3), rules)
            return [row[0] for row in beams]
        sampling = Sampling(temperature=1.0) if kind == "sampling" else None
        keys = [str(row) for row in ALL]
        return greedy(stepper, batch(source, ALL), limits, sampling, keys, rules)

    assert min(len(h.tokens) for h in run(Constraints())) < 4
    assert all(len(h.tokens) >= 4 for h in run(Constraints(minimum=4)))
    assert all(set(h.tokens) <= {3, 4, 6} for h in run(Constraints(allowed=allowed)))
    pairs = [list(itertools.pairwise(h.tokens)) for h in run(Constraints(no_repeat=2, minimum=6))]
    assert all(len(set(bigrams)) == len(bigrams) for bigrams in pairs)
    singles = run(Constraints(no_repeat=1))
    assert all(len(set(h.tokens)) == len(h.tokens) for h in singles)
    # Constraints do not change probabilities.
    ended = [row for row, hypothesis in enumerate(singles) if hypothesis.finished]
    targets = [[*singles[row].tokens, EOS] for row in ended]
    forced = force(stepper, batch(source, np.array(ended)), targets)
    scores = [singles[row].score for row in ended]
    assert len(ended) > 5 and scores == pytest.approx([f.score for f in forced], abs=ROUNDING)
    combined = run(Constraints(prefixes=PREFIXES, allowed=allowed, no_repeat=1))
    for hypothesis, prefix in zip(combined, PREFIXES, strict=True):
        # A prefix is generated even if it breaks the other constraints.
        assert hypothesis.tokens[: len(prefix)] == prefix
        assert set(hypothesis.tokens[len(prefix) :]) <= {3, 4, 6}


def test_nothing_left_to_say_leaves_a_row_unfinished(stepper: Stepper, source: Ragged) -> None:
    rules = Constraints(minimum=9, no_repeat=1, allowed=np.arange(VOCABULARY) == 4)
    limits = np.full(40, 10)
    hypotheses = greedy(stepper, batch(source, ALL), limits, constraints=rules)
    beams = beam_search(stepper, batch(source, ALL), limits, BeamSearch(2), rules)
    assert all(h.tokens == [4] and not h.finished for h in hypotheses)
    assert all(not any(h.finished for h in row) for row in beams)


def test_draws_follow_the_distribution() -> None:
    """Chi-square test against softmax(logits / temperature), truncated to top-k and top-p."""
    random = np.random.default_rng(4)
    logits = np.tile(random.standard_normal(12).astype(np.float32) * 2, (20_000, 1))
    probabilities = np.exp(log_softmax(logits[:1] / 0.7).astype(np.float64))[0]
    ranks = np.argsort(-probabilities)
    reach = np.searchsorted(probabilities[ranks].cumsum(), 0.8) + 1
    cases: list[tuple[Sampling, int]] = [
        (Sampling(0.7), 12),
        (Sampling(0.7, top_k=4), 4),
        (Sampling(0.7, top_p=0.8), int(reach)),
        (Sampling(0.7, top_k=2, top_p=0.999), 2),
    ]
    for sampling, possible in cases:
        drawn = draw_tokens(logits, sampling, random.random(20_000))
        counts = np.bincount(drawn, minlength=12)[ranks]
        expected = probabilities[ranks][:possible] / probabilities[ranks][:possible].sum()
        assert counts[possible:].sum() == 0 and 1 < possible <= 12
        assert scipy.stats.chisquare(counts[:possible], expected * 20_000).pvalue > 0.001


def test_beams_that_cannot_be() -> None:
    for size, best in ((0, 1), (2, 3), (1, 0)):
        with pytest.raises(ValueError, match="must be at least"):
            BeamSearch(size=size, best=best)
