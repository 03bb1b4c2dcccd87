"""What a modality is: one description that everything else asks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from model.modalities.media import MediaSettings


@dataclass(frozen=True)
class Modality:
    """One kind of source beside text. Its name is that of its column in records, of its stage and
    of its tensor in a batch; the column holds bytes.

    What needs a heavy library is named, "module:function", and loaded where it is used, so that
    training does not depend on how raw content is read.
    """

    name: str
    title: str
    """What one of it is called."""
    settings: type[MediaSettings]
    """The settings of its preparation."""
    preparation: str
    """Function of a list of raw contents (bytes), the settings and the folder that the stage wrote
    them to, to a list of arrays (positions, features). Raises `MediaError`."""
    embedding: str
    """A `model.modalities.embedding.SourceEmbedding`."""
    preview: str
    """Function of raw content to a `Preview` for a page, or None where it cannot be shown."""
    stored: str = "float32"
    """NumPy's name of the type in which vectors are stored."""
    stride: int = 1
    """Vectors to one position of an encoder, for counting how much a batch holds."""
    missing: bool = False
    """Whether numbers may be missing, and are stored as NaN; the network then sees for every number
    also whether there is one."""
    spoken: bool = False
    """Whether what is said in it is scored as speech is, by words and characters that are wrong."""
    held: Callable[[Any], bytes | None] = lambda value: None
    """The content that a cell of a table holds itself, beside bytes; None where the cell names a
    file. Raises `MediaError` for what is neither."""


@dataclass(frozen=True)
class Preview:
    """Raw content as a page shows it."""

    kind: str
    """The media type, of which the page has an element for pictures and one for sounds."""
    data: bytes
    ending: str
    """Of a file's name."""
