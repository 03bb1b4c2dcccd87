"""A model as a folder: weights, configuration and preprocessing. Complete, and without pickle.

`model.json` has the format of the folder. Formats:

    1   written without a format number: keys and values of attention are one matrix, `key_value`;
        the readers of pictures and sounds are `patches` and `frames`; `modality_embedding` always
        has a row for each of text, pictures and sounds
    2   two matrices, `key` and `value`; `readers.image` and `readers.audio`; a row of
        `modality_embedding` for each modality that the model takes
    3   with wishes, and the weights of their head; models without wishes are written as 2
    4   with wishes that the decoder is told, and their embedding
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from model import stored_files
from model.configuration import ModelConfig
from model.contract import EncoderDecoder
from model.future import FutureHead
from model.modalities.known import load, modalities_in
from model.modalities.processing import Processor
from model.modalities.sources import Sizes
from model.saved import tensors as checkpoint
from model.wish_embedding import WishEmbedding
from model.wishes import Wishes

WEIGHTS = "weights.safetensors"
DESCRIPTION = "model.json"
FORMAT, WISHING, TELLING = 2, 3, 4
HEAD, EMBEDDING = "future.project.weight", "wish_embedding.weight"


def build(config: ModelConfig, sizes: Sizes) -> EncoderDecoder:
    """A network with fresh weights, from PyTorch's current random state."""
    network: EncoderDecoder = load(config.network)(config, sizes)
    return network


def save_model(
    folder: Path, config: ModelConfig, model: EncoderDecoder, processor: Processor
) -> None:
    """Writes a model; with the wishes that it knows, if there are any."""
    checkpoint.save(folder / WEIGHTS, checkpoint.weights(model))
    kind = type(config)
    description = {
        "format": FORMAT,
        "config": f"{kind.__module__}:{kind.__name__}",
        "options": config.model_dump(mode="json"),
        "sizes": processor.sizes,
    }
    if model.wishes:
        description["format"] = WISHING if model.wish_embedding is None else TELLING
        description["wishes"] = {wish: list(values) for wish, values in model.wishes.values.items()}
    written = json.dumps(description, indent=2, sort_keys=True) + "\n"
    (folder / DESCRIPTION).write_text(written, encoding="utf-8")
    processor.copy(folder)


def load_model(folder: Path) -> tuple[EncoderDecoder, ModelConfig, Processor]:
    """The model in evaluation mode, on the CPU, its configuration and its preprocessing.

    Raises `ValueError` for a folder of a later format, and for one that is not as it was stored.
    """
    stored_files.check(folder)
    description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    written = description.get("format", 1)
    if written > TELLING:
        raise ValueError(
            f"{folder / DESCRIPTION} has format {written}, and this version reads up to {TELLING}: "
            "load it with the version that wrote it, or a later one"
        )
    config: ModelConfig = load(description["config"]).model_validate(description["options"])
    model = build(config, description["sizes"])
    tensors, _ = checkpoint.load(folder / WEIGHTS)
    if known := description.get("wishes"):
        wishes = Wishes({wish: tuple(values) for wish, values in known.items()})
        needed = HEAD if written == WISHING else EMBEDDING
        if needed not in tensors:
            raise ValueError(f"{folder / WEIGHTS} lacks {needed}, which wishes need")
        width = tensors[needed].shape[1]
        if written == WISHING:
            model.future = FutureHead(wishes, width, description["sizes"]["target"])
        else:
            model.wish_embedding = WishEmbedding(wishes, width)
    if written == 1:
        tensors = _of_format_2(tensors, dict(model.named_parameters()), description["sizes"])
    checkpoint.load_weights(model, tensors)
    return model.eval(), config, Processor.load(folder)


def _of_format_2(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], sizes: Sizes
) -> dict[str, Tensor]:
    """Converts weights of format 1. A user's model may itself have parameters with the old names;
    they stay as they are."""
    first = ("text", "image", "audio")
    readers = {"patches": "readers.image", "frames": "readers.audio"}
    converted = {}
    for name, tensor in tensors.items():
        before, joint, after = name.rpartition("key_value.")
        group, _, rest = name.partition(".")
        if name in wanted and tensor.shape == wanted[name].shape:
            converted[name] = tensor
        elif joint:
            converted[f"{before}key.{after}"], converted[f"{before}value.{after}"] = tensor.chunk(2)
        elif group in readers:
            converted[f"{readers[group]}.{rest}"] = tensor
        elif name == "modality_embedding.weight":
            rows = [first.index(modality) for modality in modalities_in(sizes)]
            converted[name] = tensor[rows]
        else:
            converted[name] = tensor
    return converted
