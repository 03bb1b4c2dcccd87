"""A job with every stage; and two other machines, which are network namespaces with a name and
mounts of their own. Nothing leaves this machine. Skipped where a process cannot make namespaces.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipelines.store.runs_dir import CACHE
from tests.object_store import BUCKET

PORT = 50000

SENSES = """\
name: senses
seed: 2
stages:
  rows:
    use: ingest
    task: copy
    source: copy.tsv
    columns: {text: source, target: target}
    split: {valid: 20, test: 30}
    deduplicate: exact
    shards: 2
  digits:
    use: ingest
    task: read
    source: package://sklearn/datasets/data/digits.csv.gz
    header: false
    columns: {target: 65}
    pixels: {columns: 1-64, width: 8, maximum: 16}
    replace: {target: {"0": zero, "1": one, "2": two}}
    max_rejected: 0.9
    labels: true
    split: {valid: 0.1, test: 0.2}
    shards: 2
  speech:
    use: speak
    words: {零: zero, 一: one, 二: two}
    variants: {train: [f1, f2, m1, m2], valid: [f3, m4], test: [m3, f4]}
    tasks: {transcribe: spoken}
    languages: {spoken: zh}
    shards: 2
  meant:
    use: speak
    words: {零: zero, 一: one, 二: two}
    variants: {train: [f1, f2, m1, m2], valid: [f3, m4], test: [m3, f4]}
    tasks: {interpret: meaning}
    shards: 1
  pairs:
    use: pair
    records: [digits, meant]
    task: both
    pairs: {train: 40, valid: 6, test: 12}
    conditions: {clean: {}, noisy: {image: 0.4, audio: 0}}
    shards: 2
  text: {records: [rows, digits, speech, pairs], vocabulary: {size: 60}}
  image:
    records: [digits, pairs]
    resize: 10
    crop: 8
    patch: 4
    channels: 1
    augment: {copies: 2, crop: true}
  audio: {records: [speech, pairs], mels: 20, hop: 400, augment: {time_masks: 1}}
  train:
    features: [text, image, audio]
    model: {use: gemini, layers: 1, width: 32, heads: 2, latent: 4}
    mix: {copy: 1, read: 1, transcribe: 1, both: 1}
    steps: 40
    batch_tokens: 600
    warmup: 10
    validate_every: 20
    precision: fp32
  export: {model: train, features: [text, image, audio], parity_rows: 24}
  generate:
    graphs: export
    features: [text, image, audio]
    diversity: {rows: 4, samples: 2, draws: 6, latent: [1.0], sampling: [1.0], variety: [0.3]}
    prompts: [{task: copy, text: 1 2 3}, {task: read, image: seven.png}]
  score: {predictions: generate, slices: [modalities, condition+modalities]}
  svc: {records: digits}
  report: {scores: [score, svc]}
"""


@pytest.fixture(scope="session")
def senses(digits: Callable[..., Path]) -> Callable[[Path], Path]:
    """Writes a job with every stage but series and import, and what it reads."""

    def write(folder: Path) -> Path:
        import cv2
        import numpy as np

        digits(folder, "copy", 200)
        cv2.imwrite(str(folder / "seven.png"), np.eye(12, dtype=np.uint8) * 255)
        path = folder / "senses.yaml"
        path.write_text(SENSES, encoding="utf-8")
        return path

    return write


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@dataclass
class Network:
    """Two hosts at the bridge of a third, which is where the run is."""

    name: str
    root: Path
    pools: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def host(self, number: int) -> str:
        return f"{self.name}h{number}"

    def address(self, number: int) -> str:
        """Where the worker pool of a host is."""
        return f"{self.place(number)}:{PORT}"

    def place(self, number: int) -> str:
        return f"10.87.{os.getpid() % 250}.{number + 1}"

    def command(self, number: int, hidden: Sequence[Path], *command: str | Path) -> list[str]:
        """A command as a host runs it: its network, its name, and without some folders."""
        script = 'hostname "$0"; while [ "$1" != -- ]; do mount -t tmpfs none "$1"; shift; done; '
        return [
            *("ip", "netns", "exec", self.host(number), "unshare", "--uts", "--mount"),
            *("sh", "-ec", script + 'shift; exec "$@"', self.host(number)),
            *(*map(str, hidden), "--", *map(str, command)),
        ]

    def serve(
        self,
        number: int,
        hidden: Sequence[Path] = (),
        code: Path | None = None,
        path: Sequence[Path] = (),
    ) -> None:
        """Starts the worker pool of a host.

        Args:
            hidden: folders that the host does not have.
            code: where its copy of the project is.
            path: folders of modules that come before all others.
        """
        python_path = os.pathsep.join(map(str, [*path, code or self.root]))
        command = [sys.executable, "-m", "pipelines.worker", "--port", str(PORT)]
        log = (self.root / os.devnull).open("wb")
        self.pools[self.host(number)] = subprocess.Popen(
            self.command(number, hidden, *command),
            cwd="/", env={**os.environ, "PYTHONPATH": python_path}, stdout=log, stderr=log,
        )  # fmt: skip

    def kill(self, number: int) -> None:
        """The power of a host is gone: everything that runs there ends at once."""
        pids = subprocess.check_output(["ip", "netns", "pids", self.host(number)], text=True)
        for pid in pids.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        self.pools.pop(self.host(number)).wait()

    def cut(self, number: int) -> None:
        """Nothing reaches a host any more, and nobody is told."""
        ip("-n", self.host(0), "link", "set", f"v{number}", "down")

    def beam(self, *numbers: int, each: int = 1) -> list[str]:
        """What the pipeline file says of workers on these hosts."""
        addresses = ",".join(self.address(number) for number in numbers)
        return [
            *("--set", "beam.environment_type=EXTERNAL"),
            *("--set", f"beam.environment_config={addresses!r}"),
            *("--set", f"beam.direct_num_workers={each * len(numbers)}"),
        ]

    def start(self, *arguments: str | Path) -> subprocess.Popen[str]:
        """A run on the first host."""
        command = self.command(0, [], sys.executable, "-m", "pipelines.run", *arguments)
        return subprocess.Popen(command, cwd=self.root, stderr=subprocess.PIPE, text=True)

    def run(self, *arguments: str | Path, code: int = 0) -> str:
        process = self.start(*arguments)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == code, errors
        return errors


@pytest.fixture
def network(root: Path) -> Iterator[Network]:
    """Hosts 0, 1 and 2, which can reach each other."""
    if (
        sys.platform != "linux"
        or os.geteuid()
        or not (shutil.which("ip") and shutil.which("unshare"))
    ):
        pytest.skip("namespaces take root on Linux, ip and unshare")
    made = Network(f"p{os.getpid() % 100000}", root)
    hosts = [made.host(number) for number in range(3)]
    try:
        ip("netns", "add", hosts[0])
    except subprocess.CalledProcessError:
        pytest.skip("this process cannot make network namespaces")
    try:
        for host in hosts[1:]:
            ip("netns", "add", host)
        for host in hosts:
            ip("-n", host, "link", "set", "lo", "up")
        ip("-n", hosts[0], "link", "add", "br0", "type", "bridge")
        ip("-n", hosts[0], "addr", "add", f"{made.place(0)}/24", "dev", "br0")
        ip("-n", hosts[0], "link", "set", "br0", "up")
        for number in (1, 2):
            end = f"v{number}"
            ip("-n", hosts[0], "link", "add", end, "type", "veth", "peer", "name", "eth0",
               "netns", hosts[number])  # fmt: skip
            ip("-n", hosts[0], "link", "set", end, "master", "br0", "up")
            ip("-n", hosts[number], "addr", "add", f"{made.place(number)}/24", "dev", "eth0")
            ip("-n", hosts[number], "link", "set", "eth0", "up")
        yield made
    finally:
        for host in hosts:
            pids = subprocess.run(["ip", "netns", "pids", host], capture_output=True, text=True)
            for pid in pids.stdout.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", host], capture_output=True)


@pytest.fixture
def shared_nothing(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """The URL of an object store at host 0, which is all that hosts have in common."""
    told = tmp_path / "endpoint"
    command = [sys.executable, "-m", "tests.object_store", network.place(0), str(told)]
    process = subprocess.Popen(network.command(0, [], *command), cwd=network.root)
    while not told.exists() or not told.read_text():
        assert process.poll() is None
        time.sleep(0.05)
    monkeypatch.setenv("AWS_ENDPOINT_URL", told.read_text())
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    yield f"s3://{BUCKET}/runs"
    process.kill()
    process.wait()
