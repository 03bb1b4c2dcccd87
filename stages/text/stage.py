"""Text: records in, features out; normalised, filtered, segmented and cut into subword ids.

The settings and the vocabulary are stored with the features, and later inside the model.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.stage import Context, Input, Inputs, Result, Stage
from stages.text.options import TextConfig

if TYPE_CHECKING:
    from pipelines.store.sources import Outside


class Text(Stage[TextConfig]):
    """Normalises, filters and segments text and cuts it into subword ids."""

    inputs = {
        "records": Input("records", "rows with a target, and text where they have it", many=True),
        "model": Input(
            "model", "use its preprocessing and vocabulary, not new ones", optional=True
        ),
    }
    output = "features"
    libraries = ("apache-beam", "polars", "sentencepiece", "jieba", "opencc")

    def check(self, given: Collection[str]) -> None:
        decided = {"normalize", "chinese", "lowercase", "segment", "stopwords", "vocabulary"}
        extra = sorted(decided & self.config.model_fields_set)
        if "model" in given and extra:
            raise ValueError(f"model: brings its own {', '.join(extra)}; leave these options out")

    def outside(self, base: Path) -> Iterator[tuple[str, Outside]]:
        from pipelines.store.sources import find_files

        for words in self.config.stopwords.values():
            if isinstance(words, str):
                for file in find_files(words, base):
                    yield file.shown, file

    def run(self, context: Context, inputs: Inputs) -> Result:
        from stages.text.work import prepare_text

        return prepare_text(self.config, context, inputs)
