"""Training: a resumed run equals an uninterrupted one, byte for byte; the loss is PyTorch's."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.batching import Ragged
from model.configuration import TrainingConfig, TransformerConfig
from model.contract import EncoderDecoder
from model.modalities.sources import SourceRows, text_sizes
from model.saved import tensors as checkpoint
from model.saved.folder import build
from model.training.gradients import Lanes, clip, norm_of
from model.training.loader import Ahead, Step
from model.training.loop import (
    Trainer,
    TrainingState,
    seed_of,
    shift,
    token_loss,
    validation_loss,
)
from model.training.rows import Part, TrainingRows
from model.vocabulary import EOS

CPU = torch.device("cpu")


def rows(count: int, seed: int) -> TrainingRows:
    random = np.random.default_rng(seed)
    lines = [
        [*random.integers(4, 14, size=random.integers(2, 9)).tolist(), EOS] for _ in range(count)
    ]
    tasks = ["few" if n % 6 == 0 else "many" for n in range(count)]
    return TrainingRows(SourceRows(Ragged.of(lines)), Ragged.of(lines), tasks)


def model(dropout: float = 0.2) -> EncoderDecoder:
    torch.manual_seed(4)
    config = TransformerConfig(layers=1, width=16, heads=2, dropout=dropout)
    return build(config, text_sizes(14, 14, shared=True))


def trainer(folder: Path, **options: object) -> Trainer:
    folder.mkdir(exist_ok=True)
    defaults: dict[str, object] = {
        "steps": 23, "batch_tokens": 64, "validate_every": 5, "checkpoint_every": 4, "warmup": 3,
        "select": "loss", "average": 2, "precision": "fp32",
    }  # fmt: skip
    config = TrainingConfig.model_validate(defaults | options)
    return Trainer(model(), config, rows(60, 1), rows(10, 2), seed=9, device=CPU, scratch=folder)


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    ("schedule", "optimizer"), [("inverse-sqrt", "adamw"), ("plateau", "adamw"), ("cosine", "muon")]
)
@pytest.mark.parametrize(("accumulate", "parts"), [(1, 1), (2, 4)])
@pytest.mark.parametrize("mix", [{}, {"few": 0.5, "many": 1}])
def test_killed_at_any_step_resumes_to_the_same_bytes(
    tmp_path: Path,
    schedule: str,
    optimizer: str,
    accumulate: int,
    parts: int,
    mix: dict[str, float],
) -> None:
    options = {
        "schedule": schedule, "optimizer": optimizer, "accumulate": accumulate, "parts": parts,
        "mix": mix,
    }  # fmt: skip
    whole = trainer(tmp_path / "whole", **options)
    curve = whole.run()
    checkpoint.save(tmp_path / "whole.safetensors", checkpoint.weights(whole.model))
    for kill in (1, 4, 7, 15, 22):

        def stop(progress: TrainingState, kill: int = kill) -> None:
            if progress.step == kill:
                raise Killed

        folder = tmp_path / f"killed-{kill}"
        with pytest.raises(Killed):
            trainer(folder, **options).run(stop)
        resumed = trainer(folder, **options)
        assert resumed.run() == curve
        path = tmp_path / f"{kill}.safetensors"
        checkpoint.save(path, checkpoint.weights(resumed.model))
        assert path.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_loss_falls_and_the_average_is_of_the_best(tmp_path: Path) -> None:
    run = trainer(tmp_path, steps=60, learning_rate=0.01)
    curve = run.run()
    assert curve[-1]["valid_loss"] < curve[0]["valid_loss"] - 0.1
    best = sorted(curve, key=lambda point: point["valid_loss"])[:2]
    assert run.kept() == sorted(f"snapshot-{point['step']:08d}.safetensors" for point in best)
    mean = checkpoint.average([tmp_path / name for name in run.kept()])
    for name, tensor in checkpoint.weights(run.model).items():
        assert torch.equal(tensor, mean[name])


def test_early_stopping(tmp_path: Path) -> None:
    run = trainer(tmp_path, steps=400, learning_rate=1e-9, validate_every=2, patience=3)
    run.valid_rows = rows(10, 5)
    run.score = None
    run.run()
    assert run.progress.stopped and run.progress.step < 400


def test_label_smoothing_is_the_published_formula() -> None:
    network = model(0.0).eval()
    source, target = rows(4, 3).batch(np.arange(4))
    log_probability = network(source, shift(target)).logits.log_softmax(-1)
    real = target != 0
    chosen = log_probability.gather(-1, target[..., None])[..., 0]
    expected = -(0.9 * chosen + 0.1 * log_probability.mean(-1))[real].sum()
    loss = token_loss(network(source, shift(target)).logits, target, 0.1).sum().detach()
    assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_validation_loss_does_not_depend_on_batches() -> None:
    network, held_out = model(), rows(20, 6)
    losses = [validation_loss(network, held_out, budget, CPU) for budget in (16, 64, 4096)]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)


def test_a_step_in_several_batches_is_the_step_in_one(tmp_path: Path) -> None:
    """Gradients of two batches together equal those of one batch that holds both."""
    split, joined = trainer(tmp_path / "a"), trainer(tmp_path / "b")
    for run in (split, joined):
        for module in run.model.modules():
            if hasattr(module, "threshold"):
                setattr(module, "threshold", 0)  # noqa: B010
    chosen, turns = np.arange(20), np.zeros(20, dtype=np.int64)
    weights = np.random.default_rng(0).uniform(0, 0.02, 20).astype(np.float32)
    whole = Part(chosen, turns, weights)
    halves = [Part(*(column[:6] for column in whole)), Part(*(column[6:] for column in whole))]
    split.update(Step.of(split.train_rows, halves, range(2)))
    joined.update(Step.of(joined.train_rows, [whole], range(1)))
    gradients = (
        [parameter.grad for parameter in run.model.parameters()] for run in (split, joined)
    )
    for split_gradient, joined_gradient in zip(*gradients, strict=True):
        torch.testing.assert_close(split_gradient, joined_gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("parts", [1, 4, 128])
def test_a_step_has_a_multiple_of_its_parts(parts: int) -> None:
    """Whatever is drawn: every row is in one part; one that fills a place weighs nothing."""
    training_rows = rows(300, 1)
    plain = TrainingConfig(steps=1, batch_tokens=256)
    config = plain.model_copy(update={"parts": parts})
    steps = zip(training_rows.steps(plain, 3), training_rows.steps(config, 3), strict=False)
    for whole, cut in itertools.islice(steps, 40):
        assert len(cut) % parts == 0
        drawn = sorted(row for part in whole for row in part.rows.tolist())
        assert sorted(row for part in cut if part.weighs for row in part.rows.tolist()) == drawn
        assert sum(float(p.weights @ training_rows.target.lengths[p.rows]) for p in cut) == (
            pytest.approx(1)
        )
        assert sum(map(training_rows.tokens, cut)) == sum(map(training_rows.tokens, whole))
        if parts == 4:
            costs = [part.rows.size * training_rows.lengths[part.rows].max(0).sum() for part in cut]
            assert max(costs) <= 2.2 * min(costs), "processes end together"
        if parts == 128:
            assert not all(part.weighs for part in cut)


@pytest.mark.parametrize("processes", [1, 2, 4, 8])
def test_lanes_add_up_to_the_same_bits_however_they_are_shared(processes: int) -> None:
    """A process sums a run of lanes; the sums of the processes are added in pairs."""
    network = model()
    parameters = list(network.parameters())
    random = torch.Generator().manual_seed(1)
    gradients = [
        [torch.randn(p.shape, generator=random) * 10.0 ** (n % 5) for n, p in enumerate(parameters)]
        for _ in range(8)
    ]

    def summed(lanes: Lanes, some: list[list[torch.Tensor]]) -> list[torch.Tensor]:
        for each in some:
            for parameter, gradient in zip(parameters, each, strict=True):
                parameter.grad = gradient.clone()
            lanes.end()
        return lanes.sum()

    expected = summed(Lanes(network), gradients)
    share = 8 // processes
    shares = [summed(Lanes(network), gradients[n : n + share]) for n in range(0, 8, share)]
    while len(shares) > 1:
        shares = [[x + y for x, y in zip(a, b, strict=True)]
                  for a, b in zip(shares[::2], shares[1::2], strict=True)]  # fmt: skip
    assert all(map(torch.equal, shares[0], expected))
    one_after_another = [sum(each) for each in zip(*gradients, strict=True)]
    assert not all(map(torch.equal, one_after_another, expected)), "the order shows"


def test_a_part_that_weighs_nothing_changes_nothing_but_what_decays(tmp_path: Path) -> None:
    one, other = trainer(tmp_path / "a", parts=2), trainer(tmp_path / "b", parts=2)
    whole = next(one.train_rows.steps(one.config, 1))[0]
    parts = [whole, whole.of(np.arange(0))]
    one.update(Step.of(one.train_rows, parts, range(2)))
    parts = [whole, Part(whole.rows[1:3], whole.turns[1:3], np.zeros(2, dtype=np.float32))]
    other.update(Step.of(other.train_rows, parts, range(2)))
    for mine, theirs in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert one.progress == other.progress and one.progress.tokens == one.train_rows.tokens(whole)


@pytest.mark.parametrize("largest", [0.0, 0.5, 1e9])
def test_clipping_is_pytorchs(largest: float) -> None:
    network = model()
    source, target = rows(4, 3).batch(np.arange(4))
    token_loss(network(source, shift(target)).logits, target, 0.1).sum().backward()
    mine = [p.grad.clone() for p in network.parameters() if p.grad is not None]
    norm = norm_of(mine)
    theirs = torch.nn.utils.clip_grad_norm_(network.parameters(), largest or torch.inf)
    clip(mine, norm, largest)
    assert float(norm) == pytest.approx(float(theirs), rel=1e-6)
    for gradient, parameter in zip(mine, network.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-6, atol=0)


def test_what_is_made_ahead_comes_in_order_and_ends() -> None:
    made: list[int] = []

    def items(count: int) -> Iterator[int]:
        for number in range(count):
            made.append(number)
            yield number
        raise OSError("the disk is gone")

    before = threading.active_count()
    with Ahead(items(50), 3) as ahead:
        assert [ahead.next() for _ in range(20)] == list(range(20))
    assert threading.active_count() == before, "no thread is left"
    assert 20 <= len(made) <= 25, "no further than is needed"
    with Ahead(items(2)) as ahead:
        assert [ahead.next(), ahead.next()] == [0, 1]
        with pytest.raises(OSError, match="the disk is gone"):
            ahead.next()


def test_every_part_of_every_step_draws_anew() -> None:
    seeds = {
        seed_of(seed, step, part) for seed in (0, 1) for step in range(50) for part in range(9)
    }
    assert len(seeds) == 2 * 50 * 9


def test_every_step_has_rows_of_every_task_by_its_share() -> None:
    training_rows = rows(300, 1)
    few = np.array([name == "few" for name in training_rows.tasks])
    config = TrainingConfig(steps=1, batch_tokens=256, mix={"few": 0.25, "many": 1})
    steps = list(itertools.islice(training_rows.steps(config, 5), 40))
    drawn = [np.concatenate([part.rows for part in parts]) for parts in steps]
    share = sum(few[rows].sum() for rows in drawn) / sum(len(rows) for rows in drawn)
    assert share == pytest.approx(0.2, abs=0.04)
    for parts in steps:
        weights = np.concatenate([part.weights for part in parts])
        chosen = np.concatenate([part.rows for part in parts])
        tokens = training_rows.target.lengths[chosen] * weights
        assert tokens[few[chosen]].sum() == pytest.approx(0.2)
        assert tokens[~few[chosen]].sum() == pytest.approx(0.8)
        for part in parts:
            source, target = training_rows.batch(part.rows)
            assert max(source["text"].numel(), target.numel()) <= 256
    later = list(itertools.islice(training_rows.steps(config, 5, skip=13), 27))
    for parts, others in zip(steps[13:], later, strict=True):
        for part, other in zip(parts, others, strict=True):
            assert all(map(np.array_equal, part, other))
    with pytest.raises(ValueError, match="mix: names many; the training rows are of few, many"):
        next(training_rows.steps(TrainingConfig(steps=1, mix={"many": 1}), 5))


def test_without_a_mix_every_row_comes_once_an_epoch_and_weighs_by_its_tokens() -> None:
    training_rows = rows(60, 1)
    steps = training_rows.steps(TrainingConfig(steps=1, batch_tokens=64), 5)
    seen: list[int] = []
    while len(seen) < 60:
        (part,) = next(steps)
        seen += part.rows.tolist()
        assert (training_rows.target.lengths[part.rows] @ part.weights) == pytest.approx(1)
        assert len(set(part.weights)) == 1 and set(part.turns) == {0}
    assert sorted(seen) == list(range(60))
    assert set(next(steps)[0].turns) == {1}


@pytest.mark.parametrize("mix", [{}, {"few": 0.5, "many": 1}])
def test_rows_come_as_often_as_they_are_drawn(mix: dict[str, float]) -> None:
    given = rows(60, 1)
    times = np.arange(60) % 3 + 1
    often = replace(given, times=times)
    config = TrainingConfig(batch_tokens=64, mix=mix)
    counts = np.zeros(60, dtype=int)
    for group in often.groups(config.mix):
        counts += np.bincount(group, minlength=60)
    assert (counts == times).all()
    drawn = np.zeros(60)
    for step in itertools.islice(often.steps(config, 3), 400):
        for part in step:
            np.add.at(drawn, part.rows, 1)
    of_task = np.array(given.tasks) == "many"
    for task in (of_task, ~of_task) if mix else (np.ones(60, dtype=bool),):
        rates = drawn[task] / times[task]
        assert rates.max() - rates.min() <= 2 * rates.mean() / 10


def test_weights_that_do_not_fit_are_refused() -> None:
    weights = checkpoint.weights(model())
    del weights["output_bias"]
    with pytest.raises(ValueError, match="missing \\['output_bias'\\]"):
        checkpoint.load_weights(model(), weights)


@pytest.mark.gpu
def test_training_on_a_gpu_learns(tmp_path: Path) -> None:
    config = TrainingConfig(
        steps=60, batch_tokens=64, validate_every=30, warmup=3, select="loss", learning_rate=0.01
    )
    run = Trainer(
        model(), config, rows(60, 1), rows(10, 2),
        seed=9, device=torch.device("cuda"), scratch=tmp_path,
    )  # fmt: skip
    assert run.precision == "bf16"
    curve = run.run()
    assert curve[-1]["valid_loss"] < curve[0]["valid_loss"]
