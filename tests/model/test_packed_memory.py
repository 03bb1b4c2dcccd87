"""A corpus several times larger than the memory that the process may have."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

MEGABYTE = 2**20
ALLOWED = 320 * MEGABYTE
"""Data, beside what is there before training begins: neither files that are mapped nor code."""

JOB = """
import json, resource, sys
from pathlib import Path

import numpy as np
import torch

from model.batching import Ragged
from model.configuration import TrainingConfig, TransformerConfig
from model.modalities.sources import SourceRows, text_sizes
from model.saved.folder import build
from model.training.loop import Trainer
from model.training.packed import Packer, packed
from model.training.rows import TrainingRows

folder, shards, rows, allowed, in_memory = Path(sys.argv[1]), *map(int, sys.argv[2:])
torch.set_num_threads(1)


def share(number, count):
    random = np.random.default_rng(number)
    def side():
        lengths = random.integers(20, 40, count)
        return Ragged(random.integers(4, 900, lengths.sum()), np.append(0, lengths.cumsum()))
    return TrainingRows(SourceRows(side()), side())


def data():
    text = Path("/proc/self/status").read_text()
    return int(text.partition("VmData:")[2].split()[0]) * 1024


network = build(TransformerConfig(layers=1, width=32, heads=2), text_sizes(900, 900, shared=True))
before = data()
resource.setrlimit(resource.RLIMIT_DATA, (before + allowed, before + allowed))
try:
    if in_memory:
        held = [share(number, rows) for number in range(shards)]
    packer = Packer(folder, {})
    for number in range(shards):
        packer.add(share(number, rows))
    train = packed(packer.finish(), {})
    size = sum(path.stat().st_size for path in folder.iterdir())
    # In bf16, oneDNN keeps up to 1,024 kernels of a megabyte, whatever the corpus is.
    config = TrainingConfig(steps=30, batch_tokens=2048, select="loss", precision="fp32")
    valid, scratch = share(-1 % 2**32, 20), folder / "scratch"
    scratch.mkdir()
    cpu = torch.device("cpu")
    Trainer(network, config, train, valid, seed=1, device=cpu, scratch=scratch).run()
except MemoryError:
    sys.exit("no memory")
print(json.dumps({"bytes": size, "rows": len(train)}))
"""


def trained(folder: Path, in_memory: bool) -> subprocess.CompletedProcess[str]:
    folder.mkdir()
    words = [str(folder), "16", "350000", str(ALLOWED), str(int(in_memory))]
    return subprocess.run(
        [sys.executable, "-c", JOB, *words], capture_output=True, text=True, timeout=900
    )


@pytest.mark.long
def test_a_corpus_may_be_larger_than_the_memory(tmp_path: Path) -> None:
    done = trained(tmp_path / "disk", in_memory=False)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["rows"] == 16 * 350_000 and facts["bytes"] > 4 * ALLOWED
    # The limit is one: held in memory, the same rows do not fit.
    assert "no memory" in trained(tmp_path / "memory", in_memory=True).stderr
    assert resource.getrlimit(resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY
