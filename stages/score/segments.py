"""How the rows of a task are scored, and what is kept of every scored segment."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.measures.metrics import MetricName
from stages.measures.statistics import Statistic, WishStatistic, statistic

if TYPE_CHECKING:
    import polars as pl

    from stages.judges import WishJudge


@dataclass(frozen=True)
class TaskScoring:
    """How the rows of a task are scored."""

    metrics: tuple[MetricName, ...]
    tokenizer: str
    labels: tuple[str, ...]
    references: tuple[str, ...] = ()
    """Columns of further references."""
    judges: Mapping[str, WishJudge] = field(default_factory=dict)
    """By wish, for the metric `wish`."""
    asked: Mapping[str, str] = field(default_factory=dict)
    """What was wished for, in words, by wish."""

    def to_json(self) -> dict[str, Any]:
        """What is needed to score sums again; judges are not, because they see no sums."""
        return {
            "metrics": self.metrics,
            "tokenizer": self.tokenizer,
            "labels": self.labels,
            "references": self.references,
        }

    def statistic(self, metric: MetricName) -> Statistic:
        if metric == "wish":
            return WishStatistic(self.judges, self.asked)
        return statistic(metric, self.tokenizer, self.labels, self.references)


def read_segments(folder: Path, wanted: Collection[str] | None = None) -> Iterator[pl.DataFrame]:
    """What is kept of every segment, file by file: its id, hashes of references and output, and the
    statistics of each metric as an array; all columns, or those that are wanted and exist."""
    import polars as pl

    for path in sorted(folder.glob("segments/*")):
        schema = pl.read_parquet_schema(path)
        chosen = [name for name in schema if wanted is None or name in wanted]
        yield pl.read_parquet(path, columns=chosen)
