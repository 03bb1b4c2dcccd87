"""The head for wishes learns what finished targets are, and the body stays as it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from exports.decoding.greedy import greedy
from exports.decoding.sampling import Sampling
from exports.decoding.torch_stepper import TorchStepper
from model.batching import Ragged
from model.configuration import TrainingConfig, TransformerConfig
from model.contract import EncoderDecoder, Output
from model.modalities.sources import SourceRows, text_sizes
from model.saved.folder import build
from model.training.loop import Trainer
from model.training.rows import TrainingRows
from model.training.telling import decoder_width
from model.training.wishes import LabelledRows, judge, train_future
from model.vocabulary import EOS
from model.wishes import UNKNOWN, Wishes

WISHES = Wishes({"end": ("a", "b", "c")})
MARKS = (11, 12, 13)
"""The token that makes a target an a, b or c, at its end or after its first token."""
CPU = torch.device("cpu")


def labelled(count: int, seed: int, alike: np.ndarray | None = None) -> LabelledRows:
    """Sources of two to four tokens; targets repeat them, with a mark that the source does not
    tell."""
    random = np.random.default_rng(seed)
    sources, targets = [], []
    labels = random.integers(0, 3, count)
    for label in labels:
        words = random.integers(4, 10, random.integers(2, 5)).tolist()
        place = 1 if random.random() < 0.5 else len(words)
        sources.append([*words, EOS])
        targets.append([*words[:place], MARKS[label], *words[place:], EOS])
    known = np.where(random.random(count) < 0.8, labels, UNKNOWN)
    rows = TrainingRows(SourceRows(Ragged.of(sources)), Ragged.of(targets))
    return LabelledRows(rows, known[:, None], np.eye(3, dtype=bool) if alike is None else alike)


@pytest.fixture(scope="module")
def body(tmp_path_factory: pytest.TempPathFactory) -> EncoderDecoder:
    torch.manual_seed(0)
    config = TransformerConfig(layers=1, width=32, heads=2, dropout=0, max_length=16)
    model = build(config, text_sizes(10, 14))
    settings = TrainingConfig(
        steps=250,
        batch_tokens=500,
        learning_rate=4e-3,
        warmup=20,
        select="loss",
        validate_every=250,
    )
    train, valid = labelled(2000, 1).rows, labelled(50, 2).rows
    scratch = tmp_path_factory.mktemp("scratch")
    Trainer(model, settings, train, valid, seed=1, device=CPU, scratch=scratch).run()
    return model


def taught(model: EncoderDecoder, alike: np.ndarray | None = None) -> EncoderDecoder:
    train_future(
        model, WISHES, labelled(2000, 1, alike),
        vocabulary=14, batch_tokens=500, seed=3, device=CPU, precision="fp32",
    )  # fmt: skip
    return model


def test_outputs_become_what_is_wished(body: EncoderDecoder) -> None:
    before = {name: tensor.clone() for name, tensor in body.state_dict().items()}
    model = taught(body)
    for name, tensor in before.items():
        assert (model.state_dict()[name] == tensor).all(), name
    (found,) = judge(model, labelled(200, 4), 500, CPU)
    assert found.rows < 200  # some have no label
    assert found.accuracy > 0.9
    assert found.commonest < 0.5
    stepper, rows = TorchStepper(model), labelled(60, 5).rows.source
    source, limits = rows.collate(np.arange(60)), np.full(60, 8)
    for value, mark in zip("abc", MARKS, strict=True):
        wish = WISHES.strengths([{"end": value}] * 60, 2.0)
        outputs = greedy(stepper, {**source, "wish": wish}, limits)
        met = np.mean([mark in output.tokens for output in outputs])
        assert met > 0.9, (value, met)
    plain = greedy(stepper, source, limits)
    shares = [np.mean([mark in output.tokens for output in plain]) for mark in MARKS]
    assert min(shares) < 0.5


def test_what_is_near_enough_counts_for_the_wish(body: EncoderDecoder) -> None:
    """What is b is also a: then a wish for a leaves the choice between both, and excludes c."""
    alike = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1]], dtype=bool)
    model = taught(body, alike)
    (found,) = judge(model, labelled(200, 4, alike), 500, CPU)
    assert found.accuracy > 0.9
    assert 0.55 < found.commonest < 0.8  # a: two thirds
    rows = labelled(60, 5).rows.source
    wish = WISHES.strengths([{"end": "a"}] * 60, 2.0)
    keys = [str(row) for row in range(60)]
    source = {**rows.collate(np.arange(60)), "wish": wish}
    drawn = greedy(TorchStepper(model), source, np.full(60, 8), Sampling(1.0), keys)
    shares = [np.mean([mark in output.tokens for output in drawn]) for mark in MARKS]
    assert shares[0] > 0.25 and shares[1] > 0.25 and shares[2] < 0.1, shares


def test_the_same_seed_gives_the_same_head(body: EncoderDecoder) -> None:
    first = {name: tensor.clone() for name, tensor in taught(body).state_dict().items()}
    again = taught(body).state_dict()
    assert "future.tokens" in first
    assert all((again[name] == tensor).all() for name, tensor in first.items())


def test_a_network_without_states_cannot_learn_wishes(body: EncoderDecoder) -> None:
    class Silent(type(body)):  # type: ignore[misc]
        def forward(self, source: dict[str, torch.Tensor], target: torch.Tensor) -> Output:
            return super().forward(source, target)._replace(states=None)

    kind = type(body)
    body.__class__ = Silent
    try:
        with pytest.raises(ValueError, match="does not return the states"):
            decoder_width(body)
    finally:
        body.__class__ = kind
