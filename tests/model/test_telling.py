"""A model that is told what some of its targets are meets wishes, and without one is like a model
that was told nothing. Reference: the shares in the training data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from exports.decoding.forced import force
from exports.decoding.greedy import greedy
from exports.decoding.sampling import Sampling
from exports.decoding.torch_stepper import TorchStepper
from model.batching import Ragged
from model.configuration import (
    GeminiConfig,
    LstmConfig,
    ModelConfig,
    TrainingConfig,
    TransformerConfig,
)
from model.contract import EncoderDecoder, Output
from model.modalities.sources import SourceRows, text_sizes
from model.names import WISH
from model.saved import tensors as checkpoint
from model.saved.folder import build
from model.training.loop import Trainer, shift, token_loss
from model.training.rows import TrainingRows
from model.training.telling import Told, prepare
from model.vocabulary import EOS
from model.wishes import UNKNOWN, Wishes

WISHES = Wishes({"end": ("a", "b"), "start": ("c", "d")})
ENDS, STARTS = (10, 11), (12, 13)
CPU = torch.device("cpu")
CONFIG = TransformerConfig(layers=1, width=32, heads=2, dropout=0, max_length=16)


def told(count: int, seed: int, share: float = 0.5) -> TrainingRows:
    """Sources of two to four tokens. Targets repeat them: 30% end with an a and 30% with a b, half
    start with a c and half with a d."""
    random = np.random.default_rng(seed)
    sources, targets = [], []
    labels = np.stack([random.choice([0, 1, UNKNOWN], count, p=(0.3, 0.3, 0.4)),
                       random.integers(2, 4, count)], axis=1)  # fmt: skip
    for end, start in labels:
        words = random.integers(4, 10, random.integers(2, 5)).tolist()
        sources.append([*words, EOS])
        mark = [] if end == UNKNOWN else [ENDS[end]]
        targets.append([STARTS[start - 2], *words, *mark, EOS])
    rows = SourceRows(Ragged.of(sources))
    return TrainingRows(rows, Ragged.of(targets), told=Told(WISHES, labels, share))


def trainer(folder: Path, steps: int) -> Trainer:
    torch.manual_seed(0)
    model = build(CONFIG, text_sizes(10, 14))
    prepare(model, WISHES)
    settings = TrainingConfig(
        steps=steps, batch_tokens=1000, learning_rate=6e-3, schedule="cosine", warmup=20,
        label_smoothing=0, select="loss", validate_every=steps, checkpoint_every=3,
        precision="fp32",
    )  # fmt: skip
    folder.mkdir(exist_ok=True)
    train, valid = told(2000, 1), told(50, 2)
    return Trainer(model, settings, train, valid, seed=1, device=CPU, scratch=folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> EncoderDecoder:
    training = trainer(tmp_path_factory.mktemp("scratch"), 400)
    training.run()
    return training.model


def outputs(model: EncoderDecoder, wish: dict[str, str], count: int = 300) -> list[list[int]]:
    rows, every = told(count, 5).source, np.arange(count)
    source = {**rows.collate(every), WISH: WISHES.strengths([wish] * count, 1)}
    keys = [str(row) for row in every]
    drawn = greedy(TorchStepper(model), source, np.full(count, 8), Sampling(1.0), keys)
    return [each.tokens for each in drawn]


def shares(made: list[list[int]]) -> list[float]:
    """Of a, b, c and d."""
    return [float(np.mean([mark in tokens for tokens in made])) for mark in (*ENDS, *STARTS)]


def test_outputs_are_what_is_wished(model: EncoderDecoder) -> None:
    for number, mark in enumerate("ab"):
        made = shares(outputs(model, {"end": mark}))
        assert made[number] > 0.95 and made[1 - number] < 0.03, (mark, made)
        assert made[2] == pytest.approx(0.5, abs=0.12)  # nothing was wished of it
    a, b, c, d = shares(outputs(model, {"end": "b", "start": "d"}))  # both at once
    assert min(b, d) > 0.95 and max(a, c) < 0.03


def test_without_a_wish_outputs_are_like_all_targets(model: EncoderDecoder) -> None:
    """Also where only some targets have a value. If those without one were never told so, 21% of
    the outputs would have an a, and 21% a b: the rows that are told nothing would be others."""
    assert shares(outputs(model, {}, 3000)) == pytest.approx([0.3, 0.3, 0.5, 0.5], abs=0.05)


def test_rows_are_told_as_often_as_asked_and_never_what_they_are_not() -> None:
    rows, labels = np.arange(2000), told(2000, 3, 0.25).told
    assert labels is not None
    torch.manual_seed(2)
    wish = labels.draw(rows).numpy()
    assert set(np.unique(wish)) == {0, 1}
    for number, (_, values) in enumerate(WISHES.groups):
        said = wish[:, [*values, WISHES.count + number]]
        assert said.any(axis=1).mean() == pytest.approx(0.25, abs=0.04)
        for row, position in zip(*said.nonzero(), strict=True):
            label = labels.labels[row, number]
            assert position == (2 if label == UNKNOWN else values.index(label))
    torch.manual_seed(2)
    assert (labels.draw(rows).numpy() == wish).all()


def test_a_killed_training_tells_the_same_again(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def stop(step: int) -> None:
        if step == 5:
            raise Killed

    whole = trainer(tmp_path / "whole", 8)
    curve = whole.run()
    with pytest.raises(Killed):
        trainer(tmp_path / "killed", 8).run(lambda progress: stop(progress.step))
    resumed = trainer(tmp_path / "killed", 8)
    assert resumed.run() == curve
    for name, tensor in checkpoint.weights(whole.model).items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_preparing_again_keeps_what_was_learnt(model: EncoderDecoder) -> None:
    learnt = model.wish_embedding
    assert learnt is not None
    with torch.no_grad():  # vectors of values, then of none
        learnt.weight[:, 0] = torch.arange(1.0, 7.0)
    prepare(model, Wishes({"end": ("a", "a2", "b"), "tone": ("loud", "calm")}))
    assert model.wish_embedding is not None
    assert model.wish_embedding.weight[:, 0].tolist() == [1, 0, 2, 0, 0, 5, 0]
    model.wish_embedding = learnt


@pytest.mark.parametrize("calls", ["forward", "step", "neither"])
def test_a_network_that_is_not_told_says_so(calls: str) -> None:
    sizes = text_sizes(10, 14)

    class Deaf(type(build(CONFIG, sizes))):  # type: ignore[misc]
        def forward(self, source: dict[str, torch.Tensor], target: torch.Tensor) -> Output:
            kept = source if calls == "forward" else {"text": source["text"]}
            return super().forward(kept, target)

        def step(self, *arguments: Any) -> Any:
            tokens, position, seen, memory, cache = arguments
            kept = {name: memory[name] for name in memory if calls == "step" or name != WISH}
            return super().step(tokens, position, seen, kept, cache)

    with pytest.raises(ValueError, match=r"self\.told.* in step; with tell_wishes: 0"):
        prepare(Deaf(CONFIG, sizes), WISHES)


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        LstmConfig(layers=1, width=32),
        GeminiConfig(layers=1, width=32, heads=2),
        GeminiConfig(layers=1, width=32, heads=2, latent=4),
    ],
)
def test_training_and_steps_add_the_same(config: ModelConfig) -> None:
    """`forward`, with which a model learns, and `step`, with which it decodes."""
    torch.manual_seed(3)
    model = build(config, text_sizes(10, 14)).eval()
    prepare(model, WISHES)
    assert model.wish_embedding is not None
    torch.nn.init.normal_(model.wish_embedding.weight)
    rows = told(20, 6)
    source = {
        **rows.source.collate(np.arange(20)),
        WISH: WISHES.strengths([{"end": "a"}, {"end": "b", "start": "d"}] * 10, 1.5),
    }
    targets = [list(rows.target.row(row)) for row in range(20)]
    tensors = {name: torch.from_numpy(array) for name, array in source.items()}
    padded = torch.from_numpy(rows.target.padded(np.arange(20)))
    with torch.no_grad():
        logits = model(tensors, shift(padded)).logits
        plain = model({"text": tensors["text"]}, shift(padded)).logits
    assert not torch.allclose(logits, plain, atol=0.1)
    losses = token_loss(logits, padded, 0.0)
    for loss, forced in zip(losses, force(TorchStepper(model), source, targets), strict=True):
        assert forced.score == pytest.approx(-loss.item(), abs=1e-3)
