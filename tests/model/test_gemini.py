"""The multimodal network: every branch learns, rows are independent, ONNX equals PyTorch."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from exports.decoding.forced import force, rank_labels
from exports.decoding.greedy import greedy
from exports.decoding.sampling import Sampling
from exports.decoding.session import SessionStepper
from exports.decoding.torch_stepper import TorchStepper
from exports.making.graphs import export_graphs
from model.configuration import GeminiConfig
from model.modalities.audio.embedding import FrameEmbedding
from model.modalities.sources import text_sizes
from model.networks.gemini import Gemini, gaussian_divergence
from model.saved.folder import build
from model.training.loop import annealed, divergence_loss
from model.vocabulary import BOS, EOS

SIZES = {**text_sizes(30, 25), "tasks": 3, "image": 12, "image_columns": 3, "audio": 8}
KINDS = [
    "+".join(names)
    for count in (1, 2, 3)
    for names in itertools.combinations(("text", "image", "audio"), count)
]
TOLERANCE = 2e-5
"""fp32: the same sums of values near 1 in a different order, through three layers."""


def network(latent: int = 4, sizes: dict[str, int] = SIZES, seed: int = 0) -> Gemini:
    torch.manual_seed(seed)
    config = GeminiConfig(layers=1, width=32, heads=4, latent=latent, dropout=0.1, max_length=64)
    built = build(config, sizes)
    assert isinstance(built, Gemini)
    if latent:
        # As after training; fresh weights are 0.
        torch.nn.init.normal_(built.latent_projection.weight)
    return built.eval()


def source(kinds: list[str], longest: int = 0, seed: int = 0) -> dict[str, np.ndarray]:
    """Rows of the given kinds, with irregular sizes; `longest` adds padding."""
    random = np.random.default_rng(seed)
    batch = len(kinds)
    arrays: dict[str, np.ndarray] = {
        "text": np.zeros((batch, 7 + longest), dtype=np.int64),
        "image": np.zeros((batch, 9, 12), dtype=np.float32),
        "image_length": np.zeros(batch, dtype=np.int64),
        "audio": np.zeros((batch, 13 + longest, 8), dtype=np.float32),
        "audio_length": np.zeros(batch, dtype=np.int64),
        "task": np.arange(batch) % 3,
    }
    for row, kind in enumerate(kinds):
        if "text" in kind:
            length = int(random.integers(1, 7))
            arrays["text"][row, : length + 1] = [*random.integers(4, 30, length), EOS]
        if "image" in kind:
            arrays["image"][row] = random.standard_normal((9, 12))
            arrays["image_length"][row] = 9
        if "audio" in kind:
            length = int(random.integers(1, 14))
            arrays["audio"][row, :length] = random.standard_normal((length, 8))
            arrays["audio_length"][row] = length
    return arrays


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def targets(batch: int) -> Tensor:
    torch.manual_seed(5)
    tokens = torch.randint(4, 25, (batch, 5))
    tokens[:, 0] = BOS
    return tokens


@torch.no_grad()
@pytest.mark.parametrize("latent", [0, 4])
def test_a_row_alone_has_the_logits_it_has_among_rows_of_other_kinds(latent: int) -> None:
    model = network(latent)
    rows, target = source(KINDS * 2, longest=4), targets(14)
    whole = model(tensors(rows), target).logits
    for row in range(14):
        alone = {name: array[row : row + 1] for name, array in rows.items()}
        # Without the padding that the batch has.
        alone["text"] = alone["text"][:, : max(1, int((alone["text"] != 0).sum()))]
        alone["audio"] = alone["audio"][:, : max(1, int(alone["audio_length"][0]))]
        logits = model(tensors(alone), target[row : row + 1]).logits[0]
        torch.testing.assert_close(logits, whole[row], atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_the_posterior_of_a_row_does_not_depend_on_its_batch() -> None:
    model = network()
    rows, target = source(KINDS), targets(7)
    target[2, 3:] = 0
    target[3, 3], target[3, 4:] = EOS, 0
    means, divergences = model.posterior(tensors(rows), target)
    for row in range(7):
        alone = {name: array[row : row + 1] for name, array in rows.items()}
        length = int((target[row] > EOS).sum()) + 1
        mean, divergence = model.posterior(tensors(alone), target[row : row + 1, :length])
        torch.testing.assert_close(mean[0], means[row], atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(divergence[0], divergences[row], atol=TOLERANCE, rtol=0)


def test_gradients_reach_every_parameter_of_every_branch() -> None:
    model = network().train()
    output = model(tensors(source(KINDS)), targets(7))
    assert output.divergence is not None and output.divergence.shape == (7, 4)
    (output.logits.logsumexp(-1).sum() + output.divergence.sum()).backward()
    parameters = dict(model.named_parameters())
    without = [name for name, p in parameters.items() if p.grad is None or not p.grad.any()]
    assert without == []
    parts = {"readers", "fusion", "single", "prior", "recognition", "latent_projection"}
    assert parts <= {name.partition(".")[0] for name in parameters}


def test_the_fusion_layer_is_for_rows_of_several_modalities() -> None:
    """Rows of one modality give it no gradient, even in a batch with rows of several, whose values
    do not reach them."""
    for kinds, fuses in ((["text", "image", "audio"], False), (["text+audio"] * 3, True)):
        model = network().train()
        model(tensors(source(kinds)), targets(3)).logits.sum().backward()
        reached = {p.grad is not None for p in model.fusion.parameters()}
        assert reached == {fuses}
    model = network()
    model(tensors(source(["text", "image+audio"])), targets(2)).logits[0].sum().backward()
    assert not any(p.grad is not None and p.grad.any() for p in model.fusion.parameters())


@torch.no_grad()
def test_modalities_see_themselves_and_then_each_other() -> None:
    """In the single-modality layer text attends to no picture; in the fusion layer, to no text."""
    model: Any = network()
    rows = source(["text+image"])
    rows["text"] = np.array([[5, 6, 7, EOS]])
    before, present, kinds = model.embed_source(tensors(rows))
    after = before.clone()
    after[0, 1] += 1  # of four text positions and nine picture positions
    text = [True] * 4 + [False] * 9
    fusion, model.fusion = model.fusion, Through()
    original, changed = (model.branch(x, present, kinds) for x in (before, after))
    assert (original != changed).any(dim=2)[0].tolist() == text
    model.single, model.fusion = Through(), fusion
    original, changed = (model.branch(x, present, kinds) for x in (before, after))
    assert (original != changed).any(dim=2)[0].tolist() == [False, True, False, False, *[True] * 9]


class Through(torch.nn.Module):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x


@torch.no_grad()
def test_cached_steps_equal_one_pass() -> None:
    model = network()
    rows, target = tensors(source(KINDS)), targets(7)
    whole = model(rows, target).logits
    memory, cache = model.encode(rows), model.empty_cache(7)
    memory["latent"] = memory["prior_mean"]
    for position in range(target.shape[1]):
        tokens, seen = target[:, position : position + 1], torch.zeros(7, 1, position + 1)
        logits, cache = model.step(tokens, torch.tensor(position), seen, memory, cache)
        torch.testing.assert_close(logits[:, 0], whole[:, position], atol=TOLERANCE, rtol=0)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gemini")
    export_graphs(network(), folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_onnx_equals_pytorch_for_every_set_of_modalities(graphs: Path, kind: str) -> None:
    ours, theirs = TorchStepper(network()), SessionStepper(graphs)
    for batch, longest in ((1, 0), (3, 5), (8, 1)):
        rows = source([kind] * batch, longest, seed=batch)
        our_rows = greedy(ours, rows, np.full(batch, 9))
        their_rows = greedy(theirs, rows, np.full(batch, 9))
        assert [row.tokens for row in our_rows] == [row.tokens for row in their_rows]
        our_scores, their_scores = ([r.score for r in side] for side in (our_rows, their_rows))
        np.testing.assert_allclose(our_scores, their_scores, atol=1e-4)


def test_latent_noise_and_sampling_are_the_rows_own(graphs: Path) -> None:
    """ONNX and PyTorch draw the same samples, and a row's sample does not depend on other rows."""
    ours, theirs = TorchStepper(network()), SessionStepper(graphs)
    rows, keys = source(KINDS), [f"row-{n}" for n in range(7)]
    limits = np.full(7, 9)
    for sampling in (Sampling(latent_temperature=2.0, seed=1), Sampling(temperature=1.0, seed=1)):
        our_tokens = [row.tokens for row in greedy(ours, rows, limits, sampling, keys)]
        their_tokens = [row.tokens for row in greedy(theirs, rows, limits, sampling, keys)]
        assert our_tokens == their_tokens
        alone = {name: array[3:4] for name, array in rows.items()}
        assert greedy(theirs, alone, limits[:1], sampling, keys[3:4])[0].tokens == our_tokens[3]
        assert our_tokens != [row.tokens for row in greedy(ours, rows, limits)]


def test_labels_are_ranked_by_their_whole_probability(graphs: Path) -> None:
    stepper = SessionStepper(graphs)
    rows = source(KINDS)
    labels = [[5, 6, EOS], [7, EOS], [5, 9, 11, EOS]]
    ranked = rank_labels(stepper, rows, labels, 7)
    assert ranked.shape == (7, 3)
    np.testing.assert_allclose(ranked.sum(axis=1), 1)
    scores = [[forced.score for forced in force(stepper, rows, [label] * 7)] for label in labels]
    expected = np.exp(np.array(scores).T)
    np.testing.assert_allclose(ranked, expected / expected.sum(axis=1, keepdims=True), rtol=1e-4)


def test_divergence_is_pytorchs() -> None:
    torch.manual_seed(1)
    mean, prior_mean = torch.randn(4, 3), torch.randn(4, 3)
    log_variance, prior_log_variance = torch.randn(4, 3), torch.randn(4, 3)
    expected = kl_divergence(
        Normal(mean, (0.5 * log_variance).exp()),
        Normal(prior_mean, (0.5 * prior_log_variance).exp()),
    )
    divergence = gaussian_divergence(mean, log_variance, prior_mean, prior_log_variance)
    torch.testing.assert_close(divergence, expected)


def test_free_bits_and_annealing() -> None:
    divergence = torch.tensor([[0.0, 2.0], [0.1, 4.0]])
    # Dimension 0 costs the minimum of 0.2, dimension 1 its mean over two rows, which is 3.
    assert float(divergence_loss(divergence, 0.2)) == pytest.approx(0.2 + 3.0)
    assert [annealed(2.0, step, 10) for step in (0, 5, 10, 50)] == [0.0, 1.0, 2.0, 2.0]
    assert annealed(2.0, 1, 0) == 2.0


@torch.no_grad()
def test_frames_are_a_quarter_and_padding_changes_nothing() -> None:
    torch.manual_seed(0)
    embedding = FrameEmbedding({"audio": 8}, 16, 64).eval()
    for length in range(1, 12):
        frames = torch.randn(1, length, 8)
        alone, present = embedding(frames, torch.tensor([length]))
        assert alone.shape[1] == -(-length // 4) and bool(present.all())
        padded = torch.cat([frames, torch.zeros(1, 9, 8)], dim=1)
        embedded, valid = embedding(padded, torch.tensor([length]))
        assert int(valid.sum()) == alone.shape[1]
        torch.testing.assert_close(embedded[:, : alone.shape[1]], alone)


def test_text_alone_has_only_what_text_needs() -> None:
    model = network(latent=0, sizes=text_sizes(30, 25))
    names = {name.partition(".")[0] for name, _ in model.named_parameters()}
    assert not names & {"readers", "fusion", "task_embedding", "prior"}
