"""Sounds as a modality."""

from __future__ import annotations

from model.modalities.audio.settings import AudioSettings
from model.modalities.modality import Modality

AUDIO = Modality(
    name="audio",
    title="sound",
    settings=AudioSettings,
    preparation="model.modalities.audio.files:prepared",
    embedding="model.modalities.audio.embedding:FrameEmbedding",
    preview="model.modalities.audio.preview:preview",
    stride=4,
    spoken=True,
)
