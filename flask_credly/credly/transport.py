"""HTTP with bounds: a time after which no request leaves, a deadline for the whole
answer, a limit to its size, no redirects, no retries, and errors that say whether the
request went out.
"""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import contextvars
import functools
import http.client
import importlib.metadata
import io
import logging
import os
import queue
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
from ..errors import TooLate
from ..errors import Unavailable

logger = logging.getLogger("flask_credly")

CONNECT_TIMEOUT = 5.0
"""Seconds at most to find the address and to connect to it."""

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

    def _read_status(self) -> tuple[str, int, str]:
        # http.client takes what comes before an answer for the answer, but for 100. The
        # true one would be read by the next request on this connection.
        while True:
            found = super()._read_status()  # type: ignore[misc]

            if not 101 < found[1] < 200:
                return t.cast(tuple[str, int, str], found)

            http.client.parse_headers(self.fp)


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


_CLOCKS: tuple[cabc.Callable[[], float], ...] = (
    time.monotonic,
    time.time,
    *(
        # It goes on while the machine sleeps, which the first does not on Linux.
        (functools.partial(time.clock_gettime, time.CLOCK_BOOTTIME),)
        if hasattr(time, "CLOCK_BOOTTIME")
        else ()
    ),
)


class Deadline:
    """A moment that has passed once any clock of this machine says so: one may stand
    still while the machine sleeps, another may be set back.

    :param seconds: From now.
    """

    def __init__(self, seconds: float) -> None:
        self._ends = [(clock, clock() + seconds) for clock in _CLOCKS]

    @property
    def has_passed(self) -> bool:
        """Whether it is too late."""
        return any(clock() > end for clock, end in self._ends)

    def or_in(self, seconds: float) -> Deadline:
        """Get the earlier one of this and another."""
        other = Deadline(seconds)
        other._ends += self._ends
        return other


_leaves_before: contextvars.ContextVar[Deadline | None] = contextvars.ContextVar(
    "credly_leaves_before", default=None
)


@contextlib.contextmanager
def leaving_before(deadline: Deadline) -> cabc.Iterator[None]:
    """Let no request of this thread leave once a deadline has passed. It is looked at
    when the connection is there, right before the first byte.

    :raises TooLate: By the request that would have. Nothing of it was sent, or not
        enough to be understood.
    """
    before = _leaves_before.set(deadline)

    try:
        yield
    finally:
        _leaves_before.reset(before)


def _check_deadline() -> None:
    deadline = _leaves_before.get()

    if deadline is not None and deadline.has_passed:
        raise TooLate


def _resolve(host: str, port: int, timeout: float) -> list[t.Any]:
    """Look up a name, in a thread: no system call for it knows a time limit. One that
    hangs is left behind.
    """
    answer: queue.SimpleQueue[t.Any] = queue.SimpleQueue()

    def resolve() -> None:
        family = urllib3.util.connection.allowed_gai_family()

        try:
            answer.put(socket.getaddrinfo(host, port, family, socket.SOCK_STREAM))
        except Exception as e:
            answer.put(e)

    threading.Thread(target=resolve, name="credly-resolver", daemon=True).start()

    try:
        found = answer.get(timeout=max(timeout, 0.001))
    except queue.Empty:
        raise socket.gaierror(socket.EAI_AGAIN, "no response in time") from None

    if isinstance(found, OSError):
        raise found

    if isinstance(found, Exception):  # UnicodeError, of a name that cannot be one
        raise socket.gaierror(socket.EAI_NONAME, type(found).__name__)

    return t.cast(list[t.Any], found)


class _Bounded:
    """What both kinds of connection have in common."""

    response_class: t.Any = _BoundedAnswer

    def __init__(self, adapter: BoundedAdapter, **given: t.Any) -> None:
        super().__init__(**given)
        self._adapter = adapter
        self._asks = False

    def _new_conn(self: t.Any) -> socket.socket:
        # As urllib3's, but for all addresses within one time.
        until = time.monotonic() + self.timeout

        try:
            found = _resolve(self._dns_host, self.port, self.timeout)
        except socket.gaierror as e:
            raise urllib3.exceptions.NameResolutionError(self.host, self, e) from e

        error: OSError | None = None

        for number, address in enumerate(found):
            left = (until - time.monotonic()) / (len(found) - number)

            try:
                return t.cast(socket.socket, self._connect_to(address, left))
            except OSError as e:
                error = e

        raise urllib3.exceptions.NewConnectionError(self, str(error)) from error

    def _connect_to(self: t.Any, found: t.Any, seconds: float) -> socket.socket:
        family, kind, protocol, _, address = found
        sock = socket.socket(family, kind, protocol)

        try:
            for option in (*self.socket_options, *self._adapter.socket_options):
                sock.setsockopt(*option)

            if self.source_address:
                sock.bind(self.source_address)

            sock.settimeout(max(seconds, 0.001))
            sock.connect(address)
        except BaseException:
            sock.close()
            raise

        return sock

    def connect(self: t.Any) -> None:
        try:
            super().connect()  # type: ignore[misc]
        except OSError as e:
            # Whatever goes wrong in the handshake: the request is not sent yet. Later
            # on, the error would look the same.
            raise urllib3.exceptions.NewConnectionError(self, str(e)) from e

    def putrequest(self: t.Any, *args: t.Any, **given: t.Any) -> None:
        self._asks = False

        if self.sock is None:
            self.connect()

        try:
            _check_deadline()
        except TooLate:
            # Nothing is begun: the connection is good for the next request.
            self._adapter.spare = self
            raise

        self._asks = True
        super().putrequest(*args, **given)  # type: ignore[misc]

    def send(self: t.Any, data: t.Any) -> None:
        # Once more, as a process may be stopped at any point. Half a request means
        # nothing to Credly. What goes to a proxy before is no request.
        if self._asks:
            _check_deadline()

        super().send(data)  # type: ignore[misc]

    def close(self: t.Any) -> None:
        # urllib3 closes what had an error.
        if self._adapter.spare is not self:
            super().close()  # type: ignore[misc]


class _HTTPConnection(_Bounded, urllib3.connection.HTTPConnection):
    pass


class _HTTPSConnection(_Bounded, urllib3.connection.HTTPSConnection):
    pass


class BoundedAdapter(HTTPAdapter):
    """Talks to one host, with all bounds of this module."""

    def __init__(self, timeout: float) -> None:
        super().__init__(max_retries=0)
        self._timeout = timeout
        self._pool: t.Any = None
        self.spare: t.Any = None
        """An open connection whose request was not sent."""
        self.socket_options: list[tuple[int, int, int]] = []

        if hasattr(socket, "TCP_USER_TIMEOUT"):
            # The kernel would go on for minutes to send what nobody waits for any
            # more.
            milliseconds = int(1000 * timeout)
            option = (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
            self.socket_options.append(option)

    def close(self) -> None:
        spare, self.spare = self.spare, None

        if spare is not None:
            spare.close()

        super().close()

    def _make_connection(self, kind: type[t.Any], **given: t.Any) -> t.Any:
        spare, self.spare = self.spare, None

        if spare is None:
            return kind(self, **given)

        if urllib3.util.connection.is_connection_dropped(spare):
            spare.close()

        return spare

    def get_connection_with_tls_context(self, *args: t.Any, **kwargs: t.Any) -> t.Any:
        # A session talks to one host, always in the same way.
        if self._pool is None:
            pool: t.Any = super().get_connection_with_tls_context(*args, **kwargs)
            secure = pool.scheme == "https"
            kind: type[t.Any] = _HTTPSConnection if secure else _HTTPConnection
            pool.ConnectionCls = functools.partial(self._make_connection, kind)
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
        kwargs["timeout"] = (min(self._timeout, CONNECT_TIMEOUT), self._timeout)
        _check_deadline()
        _asking.now = True

        try:
            response = super().send(request, **kwargs)
            response._content = _read(response.raw)
        finally:
            _asking.now = False

        response._content_consumed = True  # type: ignore[attr-defined]
        return response

    def open(self, request: requests.PreparedRequest, **kwargs: t.Any) -> None:
        """Open a connection for the next request, if none is open."""
        # A test that answers in the network's place would take this for a request.
        if HTTPAdapter.send.__module__ != "requests.adapters":
            return

        kwargs["timeout"] = (min(self._timeout, CONNECT_TIMEOUT), self._timeout)

        _asking.now = True

        try:
            # One that comes too late does all but send.
            with leaving_before(Deadline(-1)), contextlib.suppress(TooLate):
                super().send(request, stream=True, **kwargs)
        finally:
            _asking.now = False


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
    """Put the bounds on a session that will talk to one host.

    :raises Unavailable: The proxy that is set in the environment cannot be used.
    """
    # requests looks for proxies in the environment at every request, which costs a
    # quarter of its time. They are looked up here, once.
    settings = session.merge_environment_settings(url, {}, None, None, None)
    session.proxies.update(settings["proxies"])
    session.verify = settings["verify"]
    session.trust_env = False
    _check_proxy(requests.utils.select_proxy(url, session.proxies))
    session.headers["User-Agent"] = user_agent()
    session.headers["Accept"] = "application/json"
    session.mount("https://", BoundedAdapter(timeout))
    session.mount("http://", BoundedAdapter(timeout))
    return session


_with_scheme: t.Any = functools.partial(
    requests.utils.prepend_scheme_if_needed, new_scheme="http"
)


def _check_proxy(proxy: str | None) -> None:
    # Here, where nothing can have been sent yet: requests would fail in many ways.
    if proxy is None:
        return

    try:
        proxy = _with_scheme(proxy)
        host = urllib3.util.parse_url(proxy).host

        if host and HTTPAdapter().proxy_manager_for(proxy):
            return
    except Exception as e:
        # Its text may hold the password.
        logger.debug("The proxy address is not valid (%s).", type(e).__name__)

    raise Unavailable(
        "The proxy address is not valid. Correct HTTPS_PROXY or ALL_PROXY in the"
        " environment. Use an address such as"
        " http://name:password@proxy.example.org:3128."
    )


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
        return Unavailable("Credly's TLS certificate could not be verified.")

    if any(isinstance(cause, _NEVER_SENT) for cause in causes):
        return Unavailable("Credly could not be reached.")

    if isinstance(error, requests.Timeout):
        return OutcomeUnknown("Credly did not respond in time.")

    if isinstance(error, requests.exceptions.ContentDecodingError):
        return OutcomeUnknown("Credly's response could not be read.")

    return OutcomeUnknown("The connection to Credly was lost.")


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
