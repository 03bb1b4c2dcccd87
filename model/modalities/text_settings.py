"""What is done to text before it is cut into subwords, as data. Imports nothing heavy."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from model.modalities.stored import StoredSettings

Normalization = Literal["nfc", "nfkc", "none"]
Segmenter = Literal["jieba"]
Characters = Literal["simplified", "traditional"]
Side = Literal["source", "target"]


class SideSettings(BaseModel):
    """What is done to one side of a pair before it is cut into subwords."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    normalize: Normalization = "nfc"
    chinese: Characters | None = None
    """The characters that Chinese is written with; as it was if None."""
    lowercase: bool = False
    segment: Segmenter | None = None
    stopwords: tuple[str, ...] = ()
    prefix: str | None = None
    """A piece that every text begins with, as `>>fra<<` for models of several languages."""


class TextSettings(StoredSettings):
    """Everything a `TextProcessor` needs besides its subword models."""

    source: SideSettings = SideSettings()
    target: SideSettings = SideSettings()
    shared: bool = False
    listed: bool = False
    """Whether `pieces.json` lists the pieces in the order of their ids, because the subword
    models number them differently."""
    sources: bool = True
    """Whether any record has text as source."""
    tasks: tuple[str, ...] = ()
    """All tasks, in the order of their numbers."""

    def of(self, side: Side) -> SideSettings:
        return self.source if side == "source" else self.target
