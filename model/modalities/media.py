"""What all modalities except text share: settings as data, and the error for bad content.

Imports nothing heavy.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from model.modalities.stored import StoredSettings

if TYPE_CHECKING:
    import numpy as np

Row: TypeAlias = Mapping[str, Any]
"""A row of a table, or a record to answer: column to value. Which columns there are is the user's
choice; `text` and `task` are strings, the other modalities' columns bytes."""


class MediaError(ValueError):
    """Content that cannot be used: a reason that is counted, and a detail for the user."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


@contextmanager
def damage_as(reason: str) -> Iterator[None]:
    """Whatever a decoder raises becomes a `MediaError`: content that means harm makes libraries
    raise anything, and one bad file is one reject."""
    try:
        yield
    except MediaError:
        raise
    except Exception as error:
        what = str(error).strip().splitlines()
        detail = f"{type(error).__name__}: {what[0] if what else ''}"
        raise MediaError(reason, detail[:200]) from error


class MediaSettings(StoredSettings, ABC):
    """Base of a modality's settings. They travel with features, model and graphs."""

    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()

    @property
    @abstractmethod
    def features(self) -> int:
        """Numbers in a vector as it is stored with the features."""

    @property
    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """What a network must know, see `model.modalities.sources.Sizes`: under the modality's
        name the numbers in a vector as the network sees it, which is never 0."""


def seeded(*parts: object) -> np.random.Generator:
    """A generator that depends only on the parts: the same on any machine, in any order."""
    import numpy as np

    digest = hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))
