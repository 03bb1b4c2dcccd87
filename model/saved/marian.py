"""Hugging Face's Marian checkpoints (OPUS-MT and others of that architecture) as our Transformer.

Reads a folder as `save_pretrained` of a `MarianMTModel` and its `MarianTokenizer` writes it, from
its files alone: transformers is not needed. Three things differ there:

- Ids. Ours begin with PAD, BOS, EOS, UNK. Theirs have no BOS: decoding starts from
  `decoder_start_token_id`, and BOS gets its vector. PAD and BOS can never be generated: their bias
  is `NEVER`; transformers forbids them in its search instead.
- Positions. Theirs are all sines, then all cosines; ours alternate. So the width of every vector
  is reordered, which does not change a Transformer's output, except for rounding.
- Names of tensors.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors.torch import load_file
from torch import Tensor

from model.configuration import TransformerConfig
from model.contract import parameter_count
from model.modalities.processing import Processor
from model.modalities.text import TextProcessor
from model.modalities.text_settings import SideSettings, TextSettings
from model.saved.folder import build, save_model
from model.saved.tensors import load_weights

NEVER = -30.0
"""Bias of tokens that cannot be generated: e⁻³⁰ of the probability, harmless to label smoothing."""
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
WEIGHTS = "model.safetensors"
ACTIVATIONS = {"relu": "relu", "swish": "silu", "silu": "silu", "gelu": "gelu"}
TheirSettings: TypeAlias = Mapping[str, Any]
"""`config.json` as Hugging Face writes it; its keys are theirs."""


class CheckpointError(ValueError):
    """A folder is not a checkpoint that can be imported; names the file, and what to do."""


def import_marian(folder: Path, output: Path, task: str, prefix: str | None = None) -> int:
    """Writes a checkpoint as a model's folder and returns its number of trainable parameters.

    Args:
        task: what the model does, as records name it.
        prefix: a piece that every source begins with, as `>>fra<<` for models of several
            languages.

    Raises:
        CheckpointError: a file is missing, or describes what our Transformer does not support.
    """
    settings = _read(folder, "config.json")
    if settings.get("model_type") != "marian":
        raise CheckpointError(
            f"{folder / 'config.json'}: model_type is {settings.get('model_type')!r}; only marian "
            "can be imported"
        )
    config = _config(settings, folder)
    with tempfile.TemporaryDirectory() as name:
        text = Path(name)
        ids = _import_text(folder, settings, text, task, prefix)
        processor = Processor(TextProcessor.load(text), {})
        model = build(config, processor.sizes)
        load_weights(model, _weights(folder, settings, config, *ids))
        save_model(output, config, model, processor)
    return parameter_count(model)


def _read(folder: Path, name: str) -> Any:
    path = folder / name
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing: name the folder that save_pretrained wrote for a Marian model and "
            "its tokenizer"
        )
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error


def _config(settings: TheirSettings, folder: Path) -> TransformerConfig:
    """The configuration of the same network. Raises `CheckpointError` if there is none."""
    where = folder / "config.json"

    def same(encoder: str, decoder: str) -> int:
        if settings[encoder] != settings[decoder]:
            raise CheckpointError(
                f"{where}: {encoder} {settings[encoder]} and {decoder} {settings[decoder]} differ; "
                "they must be the same"
            )
        return int(settings[encoder])

    wanted = {
        "scale_embedding": True,
        "normalize_before": False,
        "normalize_embedding": False,
        "add_final_layer_norm": False,
        "static_position_embeddings": True,
        "tie_word_embeddings": True,
    }
    for key, value in wanted.items():
        if settings.get(key, value) != value:
            raise CheckpointError(f"{where}: {key}: {settings[key]} is not supported")
    activation = settings["activation_function"]
    if activation not in ACTIVATIONS:
        raise CheckpointError(f"{where}: activation_function: {activation!r} is not supported")
    return TransformerConfig(
        layers=settings["encoder_layers"],
        decoder_layers=settings["decoder_layers"],
        width=settings["d_model"],
        heads=same("encoder_attention_heads", "decoder_attention_heads"),
        feed_forward=same("encoder_ffn_dim", "decoder_ffn_dim"),
        dropout=settings["dropout"],
        norm="post",
        activation=ACTIVATIONS[activation],
        max_length=settings["max_position_embeddings"],
    )


def _import_text(
    folder: Path, settings: TheirSettings, output: Path, task: str, prefix: str | None
) -> tuple[list[int], list[int]]:
    """Writes the preprocessing; returns, for source and target, their id for each of ours."""
    source = _read(folder, "vocab.json")
    shared = settings.get("share_encoder_decoder_embeddings", True)
    separate = (folder / "target_vocab.json").is_file()
    if shared and separate:
        raise CheckpointError(
            f"{folder}: there is a target_vocab.json, but config.json says "
            "share_encoder_decoder_embeddings"
        )
    target = _read(folder, "target_vocab.json") if separate else source
    for name in ("source.spm", "target.spm"):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name} is missing: it belongs to Marian's tokenizer")
        shutil.copyfile(folder / name, output / name)
    special = [
        settings["pad_token_id"],
        settings["decoder_start_token_id"],
        settings["eos_token_id"],
    ]
    pieces, ids = {}, []
    for side, vocabulary in (("source", source), ("target", target)):
        if "<unk>" not in vocabulary:
            raise CheckpointError(f"{folder}: the {side} vocabulary has no piece <unk>")
        first = [*special, vocabulary["<unk>"]]
        ordered = sorted(vocabulary.items(), key=lambda item: item[1])
        rest = [(piece, id) for piece, id in ordered if id not in first]
        pieces[side] = [*SPECIAL, *(piece for piece, _ in rest)]
        ids.append([*first, *(id for _, id in rest)])
    if prefix is not None and prefix not in pieces["source"]:
        known = [piece for piece in pieces["source"] if piece.startswith(">>")]
        raise CheckpointError(
            f"the vocabulary has no piece {prefix!r}; "
            + (f"it knows {', '.join(known)}" if known else "it knows one language: omit prefix")
        )
    written = TextSettings(
        source=SideSettings(normalize="none", prefix=prefix),
        target=SideSettings(normalize="none"),
        shared=shared,
        listed=True,
        tasks=(task,),
    )
    (output / "pieces.json").write_text(
        json.dumps(pieces, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    (output / "text.json").write_text(written.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return ids[0], ids[1]


def _weights(
    folder: Path,
    settings: TheirSettings,
    config: TransformerConfig,
    source: list[int],
    target: list[int],
) -> dict[str, Tensor]:
    """Their tensors under our names, with ids and width in our order."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing. A pytorch_model.bin is a pickle and is not read: convert it with "
            "transformers: "
            'MarianMTModel.from_pretrained("…").save_pretrained("…")'
        )
    theirs = load_file(path)
    width = config.width
    order = torch.arange(width).reshape(2, width // 2).T.reshape(-1)

    def take(name: str) -> Tensor:
        try:
            return theirs[name].float()
        except KeyError:
            raise CheckpointError(f"{path} has no tensor {name}") from None

    def embedding(side: str, ids: list[int]) -> Tensor:
        own = f"model.{side}.embed_tokens.weight"
        table = take(own if own in theirs else "model.shared.weight")
        if len(table) <= max(ids):
            raise CheckpointError(f"{path}: {len(table)} vectors for {max(ids) + 1} pieces")
        return table[ids][:, order]

    weights = {
        "target_embedding.weight": embedding("decoder", target),
        "output_bias": take("final_logits_bias").reshape(-1)[target].clone(),
    }
    weights["output_bias"][:2] = NEVER
    if not settings.get("share_encoder_decoder_embeddings", True):
        weights["source_embedding.weight"] = embedding("encoder", source)

    def inwards(ours: str, name: str) -> None:
        weights[f"{ours}.weight"] = take(f"{name}.weight")[:, order]
        weights[f"{ours}.bias"] = take(f"{name}.bias")

    def outwards(ours: str, name: str) -> None:
        weights[f"{ours}.weight"] = take(f"{name}.weight")[order]
        weights[f"{ours}.bias"] = take(f"{name}.bias")[order]

    def attention(ours: str, name: str) -> None:
        inwards(f"{ours}.query", f"{name}.q_proj")
        inwards(f"{ours}.key", f"{name}.k_proj")
        inwards(f"{ours}.value", f"{name}.v_proj")
        outwards(f"{ours}.output", f"{name}.out_proj")

    sides = (("encoder", config.layers), ("decoder", config.decoder_layers or config.layers))
    for side, layers in sides:
        first = "attention" if side == "encoder" else "self_attention"
        norm = "attention_norm" if side == "encoder" else "self_norm"
        for n in range(layers):
            ours, name = f"{side}.{n}", f"model.{side}.layers.{n}"
            attention(f"{ours}.{first}", f"{name}.self_attn")
            outwards(f"{ours}.{norm}", f"{name}.self_attn_layer_norm")
            if side == "decoder":
                attention(f"{ours}.cross_attention", f"{name}.encoder_attn")
                outwards(f"{ours}.cross_norm", f"{name}.encoder_attn_layer_norm")
            inwards(f"{ours}.feed_forward.expand", f"{name}.fc1")
            outwards(f"{ours}.feed_forward.contract", f"{name}.fc2")
            outwards(f"{ours}.feed_forward_norm", f"{name}.final_layer_norm")
    return weights
