"""An S3 server on this machine, and a proxy before it that makes faults.

The server is moto's: the protocol, conditional writes and multipart uploads as S3 has them.
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import random
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BUCKET = "bucket"
KEYS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
}
KINDS = ("reset before", "reset after", "truncate", "503", "409", "500", "delay")
CODES = {
    400: "InvalidArgument",
    403: "AccessDenied",
    409: "ConditionalRequestConflict",
    500: "InternalError",
    503: "SlowDown",
}
UNLESS_THERE = "If-None-Match"
SLOW = 0.3
"""Seconds of a delay."""


@dataclass(frozen=True)
class Asked:
    """A request."""

    method: str
    path: str
    headers: Any

    @property
    def conditional(self) -> bool:
        return self.headers.get(UNLESS_THERE) is not None


Choose = Callable[[Asked], str | None]


@dataclass
class Faults:
    """Which requests go wrong, and how; by default none."""

    choose: Choose = lambda asked: None
    made: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    away: bool = False
    """Whether the server is not there at all."""
    conditions: bool = True
    """Whether the server knows If-None-Match; some pass over what they do not know."""

    def some(self, seed: int, share: float) -> None:
        """A share of the requests goes wrong, each in a way that is drawn."""
        draw = random.Random(seed)
        guard = threading.Lock()

        def choose(asked: Asked) -> str | None:
            with guard:
                return draw.choice(KINDS) if draw.random() < share else None

        self.choose = choose

    def once(self, kind: str, wanted: Callable[[Asked], bool], times: int = 1) -> None:
        """The first requests of a kind go wrong."""
        left = [times]

        def choose(asked: Asked) -> str | None:
            if left[0] and wanted(asked):
                left[0] -= 1
                return kind
            return None

        self.choose = choose


class Proxy(http.server.ThreadingHTTPServer):
    """Passes requests on to a server, with faults."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, host: str, server: tuple[str, int]) -> None:
        super().__init__((host, 0), Handler)
        self.server, self.faults = server, Faults()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may go at any time."""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def any(self) -> None:
        faults = self.server.faults
        asked = Asked(self.command, self.path, self.headers)
        faults.requests += 1
        kind = "reset before" if faults.away else faults.choose(asked)
        if kind == "409" and not asked.conditional:
            kind = "503"
        if kind is not None:
            faults.made[kind] += 1
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if kind == "reset before":
            return self.reset()
        if kind is not None and kind.isdecimal():
            return self.refuse(int(kind))
        if kind == "delay":
            time.sleep(SLOW)
        answer, data = self.passed_on(body)
        if kind == "reset after":
            return self.reset()
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        told = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
        self.send_header("Content-Length", told or "0")
        self.end_headers()
        if self.command == "HEAD":
            return None
        if kind == "truncate" and len(data) > 1:
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            return self.reset()
        self.wfile.write(data)
        return None

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = any

    def passed_on(self, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        connection = http.client.HTTPConnection(*self.server.server, timeout=60)
        hidden = ("Connection",) if self.server.faults.conditions else ("Connection", UNLESS_THERE)
        headers = {name: value for name, value in self.headers.items() if name not in hidden}
        connection.request(self.command, self.path, body or None, headers)
        answer = connection.getresponse()
        with contextlib.closing(connection):
            return answer, answer.read()

    def refuse(self, status: int) -> None:
        text = f"<Error><Code>{CODES[status]}</Code><Message>as the test wants</Message></Error>"
        data = text.encode() if self.command != "HEAD" else b""
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def reset(self) -> None:
        """Ends the connection at once, as a router that is switched off."""
        now = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, now)
        self.close_connection = True
        self.connection.close()


@dataclass(frozen=True)
class ObjectStore:
    """A bucket behind the proxy."""

    proxy: Proxy
    environment: dict[str, str]
    """What a process must have in its environment to use it."""

    @property
    def faults(self) -> Faults:
        return self.proxy.faults


@contextlib.contextmanager
def object_store(host: str = "127.0.0.1") -> Iterator[ObjectStore]:
    """A bucket with nothing in it."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    there = server.get_host_and_port()
    proxy = Proxy(host, there)
    thread = threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        boto3.client(
            "s3",
            endpoint_url=f"http://{there[0]}:{there[1]}",
            aws_access_key_id="key",
            aws_secret_access_key="secret",
            region_name="us-east-1",
        ).create_bucket(Bucket=BUCKET)
        url = f"http://{host}:{proxy.server_address[1]}"
        yield ObjectStore(proxy, {**KEYS, "AWS_ENDPOINT_URL": url})
    finally:
        proxy.shutdown()
        proxy.server_close()
        server.stop()


if __name__ == "__main__":
    # On a host of its own: the address, and a file that tells the port when it can be reached.
    with object_store(sys.argv[1]) as served:
        Path(sys.argv[2]).write_text(served.environment["AWS_ENDPOINT_URL"])
        threading.Event().wait()
