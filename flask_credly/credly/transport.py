"""HTTP with bounds: a deadline for the whole answer, a limit to its size, no
redirects, no retries, and errors that say whether the request went out.
"""

from __future__ import annotations

import collections.abc as cabc
import functools
import http.client
import importlib.metadata
import io
import logging
import os
import socket
import ssl
import threading
import time
import typing as t

import requests
import urllib3
from requests.adapters import HTTPAdapter

from ..errors import CredlyError
from ..errors import OutcomeUnknown
from ..errors import Unavailable

MAX_BYTES = 1024 * 1024
"""The largest answer that is read, decoded. A page of 50 templates has 200 kB."""


_asking = threading.local()


class _NothingPersonal(logging.Filter):
    """Keeps what was sent and what came back out of the log of urllib3, while this
    thread asks Credly: an address ends where its query begins, as that may hold a
    member's e-mail address, and an error is only named, as it may repeat anything.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if not getattr(_asking, "now", False):
            return True

        if isinstance(record.args, tuple):
            record.args = tuple(map(_shorten, record.args))

        if record.exc_info:
            record.exc_info = record.exc_text = None

        return True


def _shorten(value: object) -> object:
    if isinstance(value, str):
        return value.partition("?")[0]

    return value if isinstance(value, (int, float, type(None))) else type(value)


for _name in ("connection", "connectionpool", "poolmanager", "response", "util.retry"):
    logging.getLogger(f"urllib3.{_name}").addFilter(_NothingPersonal())


class _BoundedAnswer(http.client.HTTPResponse):
    # A socket's timeout is per read: an answer that drips in byte by byte, header or
    # body, would never end.

    def __init__(self, sock: socket.socket, *args: t.Any, **kwargs: t.Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_UntilDeadline(self.fp.detach(), sock))


class _UntilDeadline(io.RawIOBase):
    def __init__(self, raw: io.RawIOBase, sock: socket.socket) -> None:
        self._raw = raw
        self._sock = sock
        self._deadline = time.monotonic() + (sock.gettimeout() or 0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: t.Any) -> int | None:
        if (left := self._deadline - time.monotonic()) <= 0:
            raise TimeoutError("too slow")

        # urllib3 sets it again before the next request.
        self._sock.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _HTTPConnection(urllib3.connection.HTTPConnection):
    response_class = _BoundedAnswer


class _HTTPSConnection(urllib3.connection.HTTPSConnection):
    response_class = _BoundedAnswer

    def connect(self) -> None:
        try:
            super().connect()
        except OSError as e:
            # Whatever goes wrong in the handshake: the request is not sent yet. Later
            # on, the error would look the same.
            raise urllib3.exceptions.NewConnectionError(self, str(e)) from e


class _BoundedAdapter(HTTPAdapter):
    def __init__(self, timeout: float) -> None:
        super().__init__(max_retries=0)
        self._timeout = timeout
        self._pool: t.Any = None

    def get_connection_with_tls_context(self, *args: t.Any, **kwargs: t.Any) -> t.Any:
        # A session talks to one host, always in the same way.
        if self._pool is None:
            pool: t.Any = super().get_connection_with_tls_context(*args, **kwargs)
            secure = pool.scheme == "https"
            pool.ConnectionCls = _HTTPSConnection if secure else _HTTPConnection
            self._pool = pool

        return self._pool

    def cert_verify(self, conn: t.Any, *args: t.Any) -> None:
        super().cert_verify(conn, *args)  # type: ignore[no-untyped-call]

        # urllib3 would read the certificates for each connection, which takes longer
        # than the handshake.
        if trusted := conn.ca_certs or conn.ca_cert_dir:
            conn.conn_kw["ssl_context"] = _make_tls_context(trusted)
            conn.ca_certs = conn.ca_cert_dir = None

    def send(self, request: requests.PreparedRequest, **kwargs: t.Any) -> t.Any:  # type: ignore[override]
        kwargs["stream"] = True
        kwargs["timeout"] = (min(self._timeout, 5), self._timeout)
        _asking.now = True

        try:
            response = super().send(request, **kwargs)
            response._content = _read(response.raw)
        finally:
            _asking.now = False

        response._content_consumed = True  # type: ignore[attr-defined]
        return response


@functools.cache
def _make_tls_context(trusted: str) -> ssl.SSLContext:
    context = urllib3.util.create_urllib3_context()

    if os.path.isdir(trusted):
        context.load_verify_locations(capath=trusted)
    else:
        context.load_verify_locations(trusted)

    return context


def _read(raw: urllib3.HTTPResponse) -> bytes:
    body = bytearray()

    try:
        while chunk := raw.read1(65_536, decode_content=True):
            body += chunk

            if len(body) > MAX_BYTES:
                raise requests.exceptions.ContentDecodingError("too large")
    except requests.RequestException:  # an OSError too, so it comes first
        raw.close()
        raise
    except urllib3.exceptions.ReadTimeoutError as e:
        raw.close()
        raise requests.exceptions.ReadTimeout("no answer") from e
    except (urllib3.exceptions.HTTPError, OSError) as e:
        raw.close()
        raise requests.exceptions.ChunkedEncodingError("broken body") from e

    raw.release_conn()
    return bytes(body)


@functools.cache
def user_agent() -> str:
    """Name this package and its version."""
    try:
        version = importlib.metadata.version("flask-credly")
    except importlib.metadata.PackageNotFoundError:  # a bare checkout
        version = "0"

    return f"Flask-Credly/{version}"


SessionT = t.TypeVar("SessionT", bound=requests.Session)


def prepare(session: SessionT, url: str, timeout: float) -> SessionT:
    """Put the bounds on a session that will talk to one host."""
    # requests looks for proxies in the environment at every request, which costs a
    # quarter of its time. They are looked up here, once.
    settings = session.merge_environment_settings(url, {}, None, None, None)
    session.proxies.update(settings["proxies"])
    session.verify = settings["verify"]
    session.trust_env = False
    session.headers["User-Agent"] = user_agent()
    session.headers["Accept"] = "application/json"
    session.mount("https://", _BoundedAdapter(timeout))
    session.mount("http://", _BoundedAdapter(timeout))
    return session


_NEVER_SENT = (
    requests.exceptions.ConnectTimeout,
    urllib3.exceptions.NewConnectionError,
    urllib3.exceptions.ConnectTimeoutError,
    ConnectionRefusedError,
    socket.gaierror,
)


def translate(error: requests.RequestException) -> CredlyError:
    """Say of a failed request whether Credly can have seen it."""
    causes = list(_causes(error))

    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes):
        return Unavailable(
            "The certificate of who answered for Credly could not be verified."
        )

    if any(isinstance(cause, _NEVER_SENT) for cause in causes):
        return Unavailable("Credly could not be reached.")

    if isinstance(error, requests.Timeout):
        return OutcomeUnknown("Credly did not answer in time.")

    if isinstance(error, requests.exceptions.ContentDecodingError):
        return OutcomeUnknown("Credly's answer could not be read.")

    return OutcomeUnknown("The connection to Credly broke.")


def _causes(error: BaseException) -> cabc.Iterator[BaseException]:
    """Give an error and all that is within it: libraries wrap them in many ways."""
    seen: set[int] = set()
    todo: list[object] = [error]

    while todo:
        cause = todo.pop()

        if not isinstance(cause, BaseException) or id(cause) in seen:
            continue

        seen.add(id(cause))
        yield cause
        todo += [cause.__cause__, cause.__context__, getattr(cause, "reason", None)]
        todo += cause.args
