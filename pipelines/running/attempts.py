"""Attempts at a stage: how long one may take, and which failures are worth another."""

from __future__ import annotations

import errno
import faulthandler
import re
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TextIO, TypeVar
from urllib.error import HTTPError, URLError

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    wait_random_exponential,
)

from pipelines.running.failures import is_full

FIRST_WAIT, LONGEST_WAIT = 10.0, 300.0
"""Seconds: the second attempt comes after up to `FIRST_WAIT`, every further one after up to twice
as long as the one before. How long is drawn, so that runs that failed together do not come back
together."""
GRACE = 120.0
"""Seconds that a stage has to end after its time is over; then the process ends itself."""
AGAIN = 30.0
"""Seconds until it is told again, should what tells it have been swallowed."""

NUMBERS = {
    errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH,
    errno.ENETDOWN, errno.ENETRESET, errno.ENETUNREACH, errno.EPIPE, errno.ESTALE, errno.ETIMEDOUT,
    socket.EAI_AGAIN,
}  # fmt: skip
STATUSES = {408, 425, 429, 500, 502, 503, 504}
"""Answers of a server that may be others in a minute."""
HANDLING = "During handling of the above exception, another exception occurred:"
NAMES = (
    # Python, and what a worker of ours says
    *("ConnectionError", "ConnectionAbortedError", "ConnectionRefusedError"),
    *("ConnectionResetError", "TimeoutError", "IncompleteRead", "RemoteDisconnected"),
    *("WorkerDiedError", "StageTimeoutError", "ObjectStoreUnreachableError", "LeaseLostError"),
    # aiohttp, urllib3, requests, botocore, google-api-core, which file systems of fsspec use
    *("ClientConnectorError", "ClientOSError", "ClientPayloadError", "ServerDisconnectedError"),
    *("ServerTimeoutError", "ProtocolError", "ReadTimeout", "ReadTimeoutError", "ConnectTimeout"),
    *("ConnectTimeoutError", "ConnectionClosedError", "EndpointConnectionError"),
    *("ServiceUnavailable", "TooManyRequests", "BadGateway", "GatewayTimeout", "SlowDown"),
)
"""Errors that say nothing of the work itself: what was not there may be there in a minute."""
SAID = re.compile(rf"^(?:RuntimeError: )?(?:\w+\.)*(?:{'|'.join(NAMES)})(?::|$)", re.MULTILINE)
"""How a traceback names one, which is all that is left of an error in a worker process. Beam makes
some of them into a RuntimeError that begins with their name."""

T = TypeVar("T")


class StageTimeoutError(Exception):
    """A stage took longer than its `timeout:`."""


class _TimeIsOver(BaseException):
    """Raised in the middle of a stage. Not an Exception: no stage is allowed to swallow it."""


def is_transient(error: BaseException) -> bool:
    """Whether the same work may succeed later although nothing was corrected: something could not
    be reached, a worker process died, the time was over."""
    if is_full(error):
        return False
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in NUMBERS:
            return True
        if isinstance(seen, HTTPError):
            return seen.code in STATUSES
        if any(kind.__name__ in NAMES for kind in type(seen).__mro__):
            return True
        # An error that was handled, and during which another came up, is not its cause.
        text = str(seen).rpartition(HANDLING)[2]
        if SAID.search(text):
            return True
        seen = _cause(seen)
    return False


def _cause(error: BaseException) -> BaseException | None:
    """What led to an error; urllib keeps it in a place of its own."""
    if isinstance(error, URLError) and isinstance(error.reason, BaseException):
        return error.reason
    return error.__cause__


@contextmanager
def limited(seconds: float | None, console: TextIO) -> Iterator[None]:
    """Ends what runs inside after so many seconds: raises `StageTimeoutError`. If that helps
    nothing, because a library waits for ever, the process writes down where every thread is and
    ends with code 1: a run that hangs is worse than one that fails.

    Args:
        console: a file with a descriptor.
    """
    if seconds is None:
        yield
        return
    over = done = False

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal over
        if not done:
            over = True
            raise _TimeIsOver

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
    faulthandler.dump_traceback_later(seconds + GRACE, exit=True, file=console)
    try:
        yield
        done = True
    except BaseException as error:
        done = True
        # Beam turns what is raised into an error of its own.
        if over and isinstance(error, Exception | _TimeIsOver):
            what = f"an attempt took longer than its timeout of {seconds:g} s"
            raise StageTimeoutError(what) from error
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        faulthandler.cancel_dump_traceback_later()


def attempted(
    work: Callable[[], T], retries: int, told: Callable[[BaseException, int, float], None]
) -> tuple[T, int]:
    """What `work` returns, and the number of the attempt that returned it. Raises what the last
    attempt raised; after a failure that is not transient there is no other.

    Args:
        retries: how many further attempts there may be.
        told: called before every wait, with what was raised, the number of that attempt and the
            seconds that the wait takes.
    """

    def before_sleep(state: RetryCallState) -> None:
        assert state.outcome is not None and state.next_action is not None
        error = state.outcome.exception()
        assert error is not None
        told(error, state.attempt_number, state.next_action.sleep)

    attempts = Retrying(
        stop=stop_after_attempt(1 + retries),
        wait=wait_random_exponential(multiplier=FIRST_WAIT, max=LONGEST_WAIT),
        retry=retry_if_exception(is_transient),
        before_sleep=before_sleep,
        reraise=True,
    )
    result = attempts(work)
    return result, attempts.statistics["attempt_number"]
