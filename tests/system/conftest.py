"""Two other machines, which are network namespaces with a name and mounts of their own.

Nothing leaves this machine. Skipped where a process cannot make namespaces.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

PORT = 50000


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
