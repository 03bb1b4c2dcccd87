"""Graphs of the test file's fixture `model`."""

from __future__ import annotations

from pathlib import Path

import pytest

from exports.making.graphs import export_graphs
from model.contract import EncoderDecoder


@pytest.fixture(scope="module")
def graphs(model: EncoderDecoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graphs")
    export_graphs(model, folder)
    return folder
