"""All modalities. A new one is a folder beside the others, and a line here.

Imports nothing heavy.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from typing import Any

from model.modalities.audio.modality import AUDIO
from model.modalities.image.modality import IMAGE
from model.modalities.modality import Modality
from model.modalities.series.modality import SERIES

MEDIA: dict[str, Modality] = {modality.name: modality for modality in (IMAGE, AUDIO, SERIES)}
"""All modalities except text, whose settings belong to the vocabulary and go with the targets."""
MODALITIES = ("text", *MEDIA)
"""All, in the order in which a network sees them."""


def modalities_in(sizes: Mapping[str, int]) -> tuple[str, ...]:
    """The modalities that a network with given `model.modalities.sources.Sizes` takes."""
    return tuple(name for name in MODALITIES if sizes.get(name))


def in_words(names: Iterable[str], word: str = "and") -> str:
    """Names in a sentence."""
    *others, last = names
    return f"{', '.join(others)} {word} {last}" if others else last


def load(target: str) -> Any:
    """Loads the object "module:name" that a modality or a model's configuration names."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)
