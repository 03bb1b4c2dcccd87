"""Wishes: what they add is the solution that `model.future` derives, no wish is no difference, and
ONNX, PyTorch, batches and forced scores agree."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from exports.decoding.beam_search import BeamSearch, beam_search
from exports.decoding.device import open_stepper
from exports.decoding.forced import force
from exports.decoding.greedy import greedy
from exports.decoding.hypotheses import Hypothesis
from exports.decoding.sampling import Sampling
from exports.decoding.session import SessionStepper
from exports.decoding.several import Selection, draw_many
from exports.decoding.stepper import Stepper
from exports.decoding.torch_stepper import TorchStepper
from exports.making.graphs import export_graphs
from exports.making.half_precision import halve_graphs
from exports.making.quantization import quantize_graphs
from model.configuration import GeminiConfig, LstmConfig, TransformerConfig
from model.contract import EncoderDecoder
from model.future import FutureHead
from model.modalities.sources import text_sizes
from model.saved.folder import build
from model.vocabulary import EOS
from model.wish_embedding import WishEmbedding
from model.wishes import Wishes

VOCABULARY, WIDTH = 12, 16
WISHES = Wishes({"style": ("formal", "informal"), "level": ("1", "2", "3")})
LIMITS = np.array([9, 4, 7, 6])


def built(network: str, knows: bool = True) -> EncoderDecoder:
    torch.manual_seed(5)
    model = build(CONFIGS[network.removeprefix(TOLD)], text_sizes(20, VOCABULARY)).eval()
    with torch.no_grad():
        model.get_parameter("output_bias")[EOS] = 3.0  # outputs end
    torch.manual_seed(6)
    if knows and network.startswith(TOLD):
        model.wish_embedding = WishEmbedding(WISHES, WIDTH)
        torch.nn.init.normal_(model.wish_embedding.weight, std=0.5)
    elif knows:
        model.future = head()
    return model


def head() -> FutureHead:
    future = FutureHead(WISHES, WIDTH, VOCABULARY)
    with torch.no_grad():
        future.bias.normal_(std=2)
        future.project.weight.mul_(8)
    return future.eval()


TOLD = "told "
"""Begins the name of a network whose decoder is told what is wished for; others have a head."""
CONFIGS = {
    "transformer": TransformerConfig(layers=1, width=WIDTH, heads=2, max_length=24),
    "lstm": LstmConfig(layers=1, width=WIDTH, max_length=24),
    "gemini": GeminiConfig(layers=1, width=WIDTH, heads=2, latent=3, max_length=24),
}


SHORT = ["transformer", TOLD + "transformer"]
LONG = [name for each in CONFIGS for name in (each, TOLD + each) if name not in SHORT]
"""An export takes long; `test_every_network_meets_wishes` is short for all."""


@pytest.fixture(
    scope="module",
    params=[*SHORT, *(pytest.param(name, marks=pytest.mark.long) for name in LONG)],
)
def network(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bool], Path]:
    @functools.cache  # an export takes seconds, and pytest makes fixtures with parameters again
    def export(network: str, knows: bool) -> Path:
        folder: Path = tmp_path_factory.mktemp("graphs")
        export_graphs(built(network, knows), folder)
        return folder

    return export


@pytest.fixture
def graphs(network: str, exported: Callable[[str, bool], Path]) -> Path:
    return exported(network, True)


@pytest.fixture(params=["torch", "onnx"])
def stepper(request: pytest.FixtureRequest, network: str, graphs: Path) -> Stepper:
    return TorchStepper(built(network)) if request.param == "torch" else opened(graphs)


def opened(folder: Path) -> SessionStepper:
    return open_stepper(folder)


def test_files_keep_the_numbers_of_values(graphs: Path) -> None:
    assert opened(graphs).wishes == WISHES
    assert list(opened(graphs).wishes.values) == list(WISHES.values) == ["level", "style"]


def source(wished: list[dict[str, str]] | None, strength: float = 1.0) -> dict[str, np.ndarray]:
    lengths = [3, 5, 1, 4]
    text = np.zeros((4, 6), dtype=np.int64)
    for row, length in enumerate(lengths):
        text[row, :length] = 4 + (np.arange(length) * (row + 3)) % 15
        text[row, length] = EOS
    asked = {} if wished is None else {"wish": WISHES.strengths(wished, strength)}
    return {"text": text, **asked}


MIXED: list[dict[str, str]] = [
    {"style": "formal"}, {}, {"style": "informal", "level": "3"}, {"level": "1"},
]  # fmt: skip


def logits_of(stepper: Stepper, batch: dict[str, np.ndarray]) -> np.ndarray:
    state = stepper.start(batch)
    logits, _ = stepper.step(state, np.ones((4, 1), dtype=np.int64), 0)
    return logits


def same(first: list[Hypothesis], other: list[Hypothesis]) -> None:
    for one, two in zip(first, other, strict=True):
        assert (one.tokens, one.finished) == (two.tokens, two.finished)
        assert one.gains == pytest.approx(two.gains, abs=1e-4)


def test_a_wish_adds_its_strength_times_the_logarithm_of_its_chance() -> None:
    torch.manual_seed(1)
    future, states = head(), torch.randn(2, 3, WIDTH)
    asked = [{"level": "2", "style": "informal"}]
    wish = torch.from_numpy(np.concatenate([WISHES.strengths(asked, 0.7), np.zeros((1, 5), "f")]))
    wish[0, 4] = 2.0
    added, met = future(states, wish)
    for hypothesis in range(3):
        for token in range(VOCABULARY):
            scores = future.scores(states[0, hypothesis][None], torch.tensor([token]))[0]
            chances = torch.log(torch.sigmoid(scores))
            expected = 0.7 * chances[1] + 2.0 * chances[4]
            assert added[0, hypothesis, token].item() == pytest.approx(expected.item(), abs=1e-4)
            if token == EOS:
                likely = (chances[1] + chances[4]).item()
                assert met[0, hypothesis].item() == pytest.approx(likely, abs=1e-4)
    assert not added[1].any()
    assert not met[1].any()


@pytest.mark.parametrize("strength", [0.3, 1.0, 4.0])
def test_no_other_distribution_has_more_of_a_wish_at_so_little_change(strength: float) -> None:
    """The formula of `model.future`: λ·E_q[log p(a)] − KL(q ‖ p), compared with other q."""
    random = np.random.default_rng(0)
    p, chance = random.dirichlet(np.ones(9)), random.random(9)

    def gain(q: np.ndarray) -> float:
        return float(strength * (q @ np.log(chance)) - q @ np.log(q / p))

    best = p * chance**strength / (p * chance**strength).sum()
    for size in (1e-3, 0.1, 1.0):
        for _ in range(200):
            other = best * np.exp(size * random.normal(size=9))
            assert gain(other / other.sum()) < gain(best)


def test_without_a_wish_nothing_changes_to_the_last_bit(network: str) -> None:
    without = TorchStepper(built(network, knows=False))
    check_no_wish(without, TorchStepper(built(network)))


@pytest.mark.parametrize("name", LONG)
def test_every_network_meets_wishes(name: str) -> None:
    knowing = TorchStepper(built(name))
    check_no_wish(TorchStepper(built(name, knows=False)), knowing)
    decoded = greedy(knowing, source(MIXED), LIMITS)
    targets = [[*each.tokens, EOS][: len(each.gains)] for each in decoded]
    for each, result in zip(decoded, force(knowing, source(MIXED), targets), strict=True):
        assert result.score == pytest.approx(each.score, abs=1e-4)


def test_graphs_without_a_wish_neither(exported: Callable[[str, bool], Path]) -> None:
    graphs = [exported("transformer", knows) for knows in (False, True)]
    check_no_wish(*map(opened, graphs))


def check_no_wish(without: Stepper, knowing: Stepper) -> None:
    expected = logits_of(without, source(None))
    assert (logits_of(knowing, source(None)) == expected).all()
    assert (logits_of(knowing, source(MIXED, strength=0)) == expected).all()
    assert not (logits_of(knowing, source(MIXED)) == expected).all()


def test_onnx_decodes_what_pytorch_does(network: str, graphs: Path) -> None:
    exactly, onnx = TorchStepper(built(network)), opened(graphs)
    asked = source(MIXED, strength=1.5)
    np.testing.assert_allclose(logits_of(onnx, asked), logits_of(exactly, asked), atol=1e-4)
    same(greedy(onnx, asked, LIMITS), greedy(exactly, asked, LIMITS))
    beam = BeamSearch(3, best=2)
    for one, two in zip(
        beam_search(onnx, asked, LIMITS, beam),
        beam_search(exactly, asked, LIMITS, beam),
        strict=True,
    ):
        same(one, two)
    names, sampling = list("abcd"), Sampling(0.8, seed=2)
    for one, two in zip(
        draw_many(onnx, asked, LIMITS, sampling, names, 4),
        draw_many(exactly, asked, LIMITS, sampling, names, 4),
        strict=True,
    ):
        same(one, two)
        assert [h.met for h in one] == pytest.approx([h.met for h in two], abs=1e-4)


def test_rows_do_not_see_the_wishes_of_others(stepper: Stepper) -> None:
    together = greedy(stepper, source(MIXED, 3), LIMITS)
    for row in range(4):
        alone = {name: array[row : row + 1] for name, array in source(MIXED, 3).items()}
        same(greedy(stepper, alone, LIMITS[row : row + 1]), together[row : row + 1])
    unwished = greedy(stepper, source(None), LIMITS)
    same(unwished[1:2], together[1:2])
    wishing = (0, 2, 3)
    assert any(unwished[row].gains != pytest.approx(together[row].gains) for row in wishing)


def test_forced_scores_are_those_of_decoding(stepper: Stepper) -> None:
    asked = source(MIXED, 1.5)
    decoded = greedy(stepper, asked, LIMITS)
    targets = [[*each.tokens, EOS][: len(each.gains)] for each in decoded]
    for each, result in zip(decoded, force(stepper, asked, targets), strict=True):
        assert result.score == pytest.approx(each.score, abs=1e-4)


def test_the_chance_of_a_draw_is_that_of_its_end(network: str) -> None:
    model = built(network)
    if model.future is None:
        pytest.skip("only a head says what the chances are")
    if model.latent:
        pytest.skip("forward has the prior's mean too, but adds it elsewhere")
    asked = source([{"style": "informal", "level": "2"}] * 4)
    drawn = draw_many(TorchStepper(model), asked, LIMITS, Sampling(1.0, seed=1), list("abcd"), 5)
    checked = 0
    for row, hypotheses in enumerate(drawn):
        for hypothesis in hypotheses:
            if not hypothesis.finished:
                continue
            target = torch.tensor([[1, *hypothesis.tokens]])
            text = torch.from_numpy(asked["text"][row : row + 1])
            states = model({"text": text}, target).states
            assert states is not None and model.future is not None
            scores = model.future.scores(states[0, -1:], torch.tensor([EOS]))[0]
            expected = torch.log(torch.sigmoid(scores[[1, 4]])).sum().item()
            assert hypothesis.met == pytest.approx(expected, abs=1e-3)
            checked += 1
    assert checked > 5


def test_of_equal_draws_those_that_meet_the_wish_are_kept() -> None:
    texts = ["a b c", "a b d"]
    draws = [Hypothesis([1], [-1.0], True, met=-2.0), Hypothesis([1], [-1.0], True, met=-0.1)]
    assert Selection().choose(texts, draws) == [1]
    assert Selection().choose(texts, draws[::-1]) == [0]


def test_16_bits_meet_wishes_too(graphs: Path, tmp_path: Path) -> None:
    halve_graphs(graphs, tmp_path, "fp16")
    low, asked = opened(tmp_path), source(MIXED, 1.5)
    np.testing.assert_allclose(logits_of(low, asked), logits_of(opened(graphs), asked), atol=0.1)
    together = greedy(low, asked, LIMITS)  # rows leave the batch with their wishes
    for row in range(4):
        alone = {name: array[row : row + 1] for name, array in asked.items()}
        (one,) = greedy(low, alone, LIMITS[row : row + 1])
        assert (one.tokens, one.finished) == (together[row].tokens, together[row].finished)


def test_graphs_with_wishes_can_be_in_bf16(graphs: Path, network: str, tmp_path: Path) -> None:
    """ONNX's own schemas say which operators take bf16, which no CPU computes here."""
    if network.endswith("lstm"):
        with pytest.raises(ValueError, match="ONNX has no LSTM in bf16"):
            halve_graphs(graphs, tmp_path, "bf16")
        return
    halve_graphs(graphs, tmp_path, "bf16")
    step = onnx.load(str(tmp_path / "step.onnx")).graph
    computed = {"logits"}
    for node in step.node:  # the choice of tokens, after the logits, is in fp32
        if computed & set(node.input):
            computed |= set(node.output)
            continue
        if not node.domain and node.op_type != "Cast":
            schema = onnx.defs.get_schema(node.op_type, 18, "")
            assert "tensor(bfloat16)" in schema.inputs[0].types, node.op_type


def test_8_bits_meet_wishes_too(graphs: Path, network: str, tmp_path: Path) -> None:
    if network.endswith("lstm"):
        pytest.skip("its products are one operator, which stays as it is")
    asked = source(MIXED, 1.5)

    def calibrate(stepper: Stepper) -> None:
        greedy(stepper, asked, LIMITS)

    quantize_graphs(graphs, tmp_path, calibrate)
    low, exact = opened(tmp_path), opened(graphs)
    added = [logits_of(each, asked) - logits_of(each, source(None)) for each in (low, exact)]
    assert not added[0][1].any()  # a row without a wish
    assert np.abs(added[1][0]).max() > 1
    np.testing.assert_allclose(added[0], added[1], atol=0.4)


def test_what_a_model_does_not_know_is_told() -> None:
    with pytest.raises(ValueError, match="did you mean 'formal'"):
        WISHES.strengths([{"style": "formall"}], 1)
    with pytest.raises(ValueError, match=r"knows no wish 'stile'.*did you mean 'style'"):
        WISHES.strengths([{"stile": "formal"}], 1)
    with pytest.raises(ValueError, match="trained without wishes"):
        Wishes().strengths([{"style": "formal"}], 1)
    plain = TorchStepper(built("transformer", knows=False))
    with pytest.raises(ValueError, match="5 numbers, and the model takes 0"):
        plain.start(source(MIXED))
