"""Pictures as a modality."""

from __future__ import annotations

from model.modalities.image.settings import ImageSettings
from model.modalities.modality import Modality

IMAGE = Modality(
    name="image",
    title="picture",
    settings=ImageSettings,
    preparation="model.modalities.image.files:prepared",
    embedding="model.modalities.image.embedding:PatchEmbedding",
    preview="model.modalities.image.preview:preview",
    stored="uint8",
)
