"""Our exported graphs, with the batch sizes of a job. Run in the project's own environment."""

from __future__ import annotations

import time

STARTED = time.time()

from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

from serving import Tokens, serve  # noqa: E402

from exports.decoding.beam_search import BeamSearch  # noqa: E402
from exports.decoding.translator import Translator  # noqa: E402
from model.batching import Ragged  # noqa: E402
from model.modalities.sources import SourceRows  # noqa: E402


def load(job: dict[str, Any]) -> dict[str, Callable[[], Tokens]]:
    source = SourceRows(Ragged.of(job["source"]))

    def contender(batch_tokens: int) -> Callable[[], Tokens]:
        translator = Translator(
            Path(job["graphs"]), ("cpu",), job["threads"], batch_tokens, BeamSearch(job["beam"])
        )
        return lambda: [hypotheses[0].tokens for hypotheses in translator.search(source)]

    return {f"{job['name']}, {size} tokens": contender(size) for size in job["batch_tokens"]}


serve(STARTED, load)
