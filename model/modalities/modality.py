"""What a modality is: one description that all other code uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from model.modalities.media import MediaSettings


@dataclass(frozen=True)
class Modality:
    """One kind of source besides text. Its column in records, its stage and its tensor in a batch
    have its name; the column holds bytes.

    Code that needs a heavy library is given as text, "module:function", and loaded where it is
    used, so that training does not depend on how raw content is read.
    """

    name: str
    title: str
    """What one item of it is called."""
    settings: type[MediaSettings]
    """The settings of its preparation."""
    preparation: str
    """Function from a list of raw contents (bytes), the settings and the folder that the stage
    wrote them to, to a list of arrays (positions, features). Raises `MediaError`."""
    embedding: str
    """A `model.modalities.embedding.SourceEmbedding`."""
    preview: str
    """Function from raw content to a `Preview` for a page, or None if it cannot be shown."""
    stored: str = "float32"
    """NumPy's name of the type in which vectors are stored."""
    stride: int = 1
    """Vectors per position of an encoder, for computing the size of a batch."""
    missing: bool = False
    """Whether numbers may be missing, and are stored as NaN; the network then also sees for every
    number whether it is present."""
    spoken: bool = False
    """Whether its content is scored as speech, by word and character error rate."""
    held: Callable[[Any], bytes | None] = lambda value: None
    """The content that a table cell holds itself, if not as bytes; None if the cell names a file.
    Raises `MediaError` if it does neither."""


@dataclass(frozen=True)
class Preview:
    """Raw content as a page shows it."""

    kind: str
    """The media type; the page has one element for pictures and one for sounds."""
    data: bytes
    ending: str
    """File name extension."""
