"""A server that keeps what it is sent."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class Server(ThreadingHTTPServer):
    """Keeps what it is sent; refuses the first `refuse` requests."""

    def __init__(self, refuse: int = 0) -> None:
        self.refuse, self.got = refuse, list[tuple[str, str, bytes]]()
        self.elsewhere = False
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append((self.command, self.path, body))
        if self.server.elsewhere:
            self.send_response(302)
            self.send_header("Location", self.server.url)
        else:
            self.send_response(503 if len(self.server.got) <= self.server.refuse else 200)
        self.end_headers()

    do_PUT = do_POST

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        yield served
        served.shutdown()
        thread.join()
