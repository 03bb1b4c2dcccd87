"""Several outputs of a source: drawn as one by one, and chosen without regard to other sources."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from exports.decoding.constraints import Constraints
from exports.decoding.greedy import greedy
from exports.decoding.hypotheses import Hypothesis
from exports.decoding.sampling import Sampling
from exports.decoding.session import SessionStepper
from exports.decoding.several import SCORE_WEIGHT, Selection, draw_many, ngram_f1
from exports.decoding.stepper import Stepper
from exports.decoding.torch_stepper import TorchStepper
from exports.making.graphs import export_graphs
from model.configuration import GeminiConfig, LstmConfig, TransformerConfig
from model.contract import EncoderDecoder
from model.modalities.sources import text_sizes
from model.saved.folder import build

COUNT = 6
LENGTHS = [3, 5, 1, 4]
LIMITS = np.array([9, 4, 7, 0])
DRAWN = Sampling(temperature=0.8, seed=3)


def built(config: Any) -> EncoderDecoder:
    torch.manual_seed(5)
    return build(config, text_sizes(20, 12)).eval()


@pytest.fixture(scope="module", params=["transformer", "lstm", "gemini"])
def model(request: pytest.FixtureRequest) -> EncoderDecoder:
    return built(
        {
            "transformer": TransformerConfig(layers=1, width=16, heads=2, max_length=24),
            "lstm": LstmConfig(layers=1, width=16, max_length=24),
            "gemini": GeminiConfig(layers=1, width=16, heads=2, latent=3, max_length=24),
        }[request.param]
    )


@pytest.fixture(scope="module", params=["torch", "onnx"])
def stepper(
    request: pytest.FixtureRequest, model: EncoderDecoder, tmp_path_factory: pytest.TempPathFactory
) -> Stepper:
    if request.param == "torch":
        return TorchStepper(model)
    folder: Path = tmp_path_factory.mktemp("graphs")
    export_graphs(model, folder)
    return SessionStepper(folder)


def source(rows: list[int]) -> dict[str, np.ndarray]:
    text = np.zeros((len(rows), 6), dtype=np.int64)
    for place, row in enumerate(rows):
        text[place, : LENGTHS[row]] = 4 + (np.arange(LENGTHS[row]) * (row + 3)) % 15
        text[place, LENGTHS[row]] = 2
    return {"text": text}


@pytest.mark.parametrize("rules", [None, Constraints(minimum=2, no_repeat=2)])
def test_each_is_what_greedy_draws_by_its_key(stepper: Stepper, rules: Constraints | None) -> None:
    rows = [0, 1, 2, 3]
    keys = [f"row {row}" for row in rows]
    together = draw_many(stepper, source(rows), LIMITS, DRAWN, keys, COUNT, rules)
    for number in range(COUNT):
        single = [f"{key}/{number}" for key in keys]
        alone = greedy(stepper, source(rows), LIMITS, DRAWN, single, rules)
        for row in rows:
            drawn, expected = together[row][number], alone[row]
            assert (drawn.tokens, drawn.finished) == (expected.tokens, expected.finished)
            assert drawn.gains == pytest.approx(expected.gains, abs=1e-4)
    assert len({tuple(h.tokens) for h in together[0]}) > 1
    # A row's draws do not depend on the rows beside it.
    for row in rows:
        (alone_row,) = draw_many(
            stepper, source([row]), LIMITS[[row]], DRAWN, [keys[row]], COUNT, rules
        )
        assert [h.tokens for h in alone_row] == [h.tokens for h in together[row]]


def test_draws_cannot_have_latents_of_their_own(stepper: Stepper) -> None:
    with pytest.raises(ValueError, match="share its latent"):
        draw_many(stepper, source([0]), LIMITS[:1], Sampling(1.0, latent_temperature=1.0), ["a"], 2)


def test_similarity_is_the_f1_of_words_and_pairs() -> None:
    alike = ngram_f1(["the cat sat", "the cat", "今天很好", "今天好", ""])
    assert np.array_equal(alike, alike.T) and np.array_equal(np.diag(alike), np.ones(5))
    # {"", the, cat, sat} and 4 pairs; {"", the, cat} and 3 pairs; 5 in common.
    assert alike[0, 1] == pytest.approx(2 * 5 / (8 + 6))
    # {"", 今, 天, 很, 好} and 5 pairs; without 很: 4 and 4; 4 words and 3 pairs in common.
    assert alike[2, 3] == pytest.approx(2 * 7 / (10 + 8))


def hypotheses(scores: list[float]) -> list[Hypothesis]:
    return [Hypothesis([5], [score], True) for score in scores]


def test_what_most_others_say_is_kept_first() -> None:
    texts = ["a b c", "a b d", "a b c", "x y z", "a b e"]
    scores = hypotheses([-1.0, -1.0, -1.0, -0.9, -1.0])
    assert Selection(keep=1).choose(texts, scores) == [0]
    # The outsider comes last for its worth, and second for its variety.
    assert Selection(keep=4).choose(texts, scores)[-1] == 3
    assert Selection(keep=4, variety=0.6).choose(texts, scores)[:2] == [0, 3]
    # As many as there are different ones; the same in any order but for equals.
    assert sorted(Selection(keep=9).choose(texts, scores)) == [0, 1, 3, 4]
    turned = Selection(keep=3, variety=0.3).choose(texts[::-1], scores[::-1])
    kept = Selection(keep=3, variety=0.3).choose(texts, scores)
    assert texts[::-1][turned[0]] == texts[kept[0]]


def test_maximal_marginal_relevance_is_the_published_sum() -> None:
    """Carbonell and Goldstein, 1998, written out."""
    chance = np.random.default_rng(2)
    words = np.array(["red", "blue", "the", "a", "house", "river"])
    texts = [" ".join(chance.choice(words, chance.integers(2, 6))) for _ in range(20)]
    scores = hypotheses((-chance.random(20)).tolist())
    found = Selection(keep=5, variety=0.4).choose(texts, scores)
    unique = list(dict.fromkeys(texts))
    pair = {(a, b): ngram_f1([a, b])[0, 1] for a in unique for b in unique}
    worth = {
        a: np.mean([pair[a, b] for b in texts])
        + SCORE_WEIGHT * max(h.score for t, h in zip(texts, scores, strict=True) if t == a)
        for a in unique
    }
    chosen: list[str] = []
    while len(chosen) < 5:
        rest = [text for text in unique if text not in chosen]
        chosen.append(
            max(
                rest,
                key=lambda a: 0.6 * worth[a] - 0.4 * max((pair[a, b] for b in chosen), default=0),
            )
        )
    assert [texts[number] for number in found] == chosen
