"""Imported Marian checkpoints: transformers' own model and tokenizer are the reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from exports.decoding.greedy import greedy
from exports.decoding.torch_stepper import TorchStepper
from model.saved.folder import load_model
from model.saved.marian import CheckpointError, import_marian
from model.vocabulary import BOS, EOS, PAD, UNK

Marian = Any
"""See `tests/conftest.py`."""


TOLERANCE = 2e-5
"""fp32: the same sums of values near 1, in a different order."""


@pytest.mark.parametrize("separate", [False, True])
@torch.no_grad()
def test_logits_and_tokens_equal_transformers(
    tmp_path: Path, marian: Marian, separate: bool
) -> None:
    folder = marian.save(tmp_path / "marian", separate)
    output = tmp_path / "model"
    output.mkdir()
    import_marian(folder, output, "translate")
    model, _, processor = load_model(output)
    theirs = transformers.MarianMTModel.from_pretrained(folder).eval()
    words = marian.tokenizer(folder, separate)
    vocabulary = words.encoder
    target_vocabulary = words.target_encoder if separate else words.encoder
    pieces = processor.text.pieces
    of_source = {id: vocabulary[p] for id, p in enumerate(pieces["source"]) if id > BOS}
    of_target = {id: target_vocabulary[p] for id, p in enumerate(pieces["target"]) if id > BOS}
    assert of_source[EOS] == 0 and of_source[UNK] == 1

    batch = words(marian.sources, return_tensors="pt", padding=True)
    encoded = processor.text.encode(marian.sources)
    rows = range(len(marian.sources))
    assert [[of_source[id] for id in encoded.row(row)] for row in rows] == [
        ids[mask.bool()].tolist()
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]

    source = {"text": torch.from_numpy(encoded.padded(torch.arange(len(marian.sources)).numpy()))}
    targets = processor.text.encode(marian.targets, "target")
    target = torch.tensor([[BOS, *targets.row(row)[:2]] for row in rows])
    start = theirs.config.decoder_start_token_id
    decoder_ids = [[start, *(of_target[id] for id in targets.row(row)[:2])] for row in rows]
    expected = theirs(**batch, decoder_input_ids=torch.tensor(decoder_ids)).logits
    logits = model(source, target).logits
    names = torch.tensor(list(of_target.values()))
    assert len(names) == logits.shape[-1] - 2
    torch.testing.assert_close(logits[..., 2:], expected[..., names], atol=TOLERANCE, rtol=0)
    assert (logits[..., [PAD, BOS]].amax(-1) < logits.amax(-1) - 10).all()

    decoded = greedy(
        TorchStepper(model), {"text": source["text"].numpy()}, torch.full((4,), 12).numpy()
    )
    generated = theirs.generate(**batch, num_beams=1, do_sample=False, max_new_tokens=12)
    for row, hypothesis in enumerate(decoded):
        ids = [of_target[id] for id in hypothesis.tokens]
        expected_ids = generated[row, 1:].tolist()
        assert ids == (expected_ids[: expected_ids.index(0)] if 0 in expected_ids else expected_ids)
    drawn = torch.randint(UNK + 1, len(pieces["target"]), (20, 9)).tolist()
    their_texts = words.batch_decode(
        [[of_target[id] for id in row] for row in drawn], use_source_tokenizer=False
    )
    assert processor.text.decode(drawn) == [" ".join(text.split()) for text in their_texts]


def test_text_survives_the_round_trip(tmp_path: Path, marian: Marian) -> None:
    output = tmp_path / "model"
    output.mkdir()
    import_marian(marian.save(tmp_path / "marian"), output, "translate", ">>fra<<")
    text = load_model(output)[2].text
    encoded = text.encode(marian.sources)
    assert [text.pieces["source"][encoded.row(row)[0]] for row in range(4)] == [">>fra<<"] * 4
    targets = text.encode(marian.targets, "target")
    assert text.decode([targets.row(row) for row in range(4)]) == list(marian.targets)


def test_what_cannot_be_imported_is_said(tmp_path: Path, marian: Marian) -> None:
    folder = marian.save(tmp_path / "marian")
    with pytest.raises(CheckpointError, match=r"no piece '>>deu<<'; it knows >>fra<<"):
        import_marian(folder, tmp_path, "translate", ">>deu<<")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing.*pickle"):
        import_marian(folder, tmp_path, "translate")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "normalize_before": True}))
    with pytest.raises(CheckpointError, match=r"config\.json: normalize_before: True"):
        import_marian(folder, tmp_path, "translate")
    (folder / "config.json").write_text(json.dumps({**settings, "model_type": "t5"}))
    with pytest.raises(CheckpointError, match="model_type is 't5'"):
        import_marian(folder, tmp_path, "translate")
    (folder / "source.spm").unlink()
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=r"source\.spm is missing"):
        import_marian(folder, tmp_path, "translate")
