"""How requests reach the simulator and how its answers travel, or fail to."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import http
import io
import json
import socket
import struct
import threading
import time
import typing as t
import urllib.parse

from werkzeug.datastructures import Headers
from werkzeug.exceptions import HTTPException
from werkzeug.serving import ThreadedWSGIServer
from werkzeug.serving import WSGIRequestHandler
from werkzeug.wrappers import Request

if t.TYPE_CHECKING:
    from wsgiref.types import StartResponse
    from wsgiref.types import WSGIApplication
    from wsgiref.types import WSGIEnvironment

    import requests

Side = t.Literal["api", "token", "both"]
How = t.Literal["answer", "hang", "reset", "truncate", "drip", "late"]

HOWS: tuple[How, ...] = t.get_args(How)

_SILENT = ("hang", "reset", "late")
_HANDLER = "simulator.handler"


@dataclasses.dataclass(frozen=True)
class Call:
    """One request, whichever way it came."""

    method: str
    path: str
    query: list[tuple[str, str]]
    headers: Headers
    body: bytes
    origin: str
    side: Side = "both"
    timeout_missing: bool = False


@dataclasses.dataclass(frozen=True)
class Reply:
    """One answer, and what happens to it on the way."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    how: How = "answer"
    delay: float = 0.0

    @property
    def silent(self) -> bool:
        """Whether the connection is closed without an answer."""
        return self.how in _SILENT

    @property
    def full_length(self) -> int:
        # A cut answer must promise more than it keeps, even an empty one.
        return max(2, len(self.body)) if self.how == "truncate" else len(self.body)

    @property
    def sent_body(self) -> bytes:
        if self.how != "truncate":
            return self.body

        return self.body[: len(self.body) // 2]


def json_reply(
    status: int, body: object, headers: cabc.Mapping[str, str] | None = None
) -> Reply:
    """Make an answer with a JSON body."""
    content = {"Content-Type": "application/json; charset=utf-8"}
    return Reply(status, json.dumps(body).encode(), content | dict(headers or {}))


def data_reply(row: object, status: int = 200) -> Reply:
    """Make an answer of one row."""
    return json_reply(status, {"data": row, "metadata": {}})


def text_reply(status: int, body: str | bytes, headers: dict[str, str]) -> Reply:
    """Make an answer of a body that is sent as it is."""
    content = body.encode() if isinstance(body, str) else body
    kind = "text/html" if content.lstrip()[:1] == b"<" else "text/plain"

    if content.lstrip()[:1] in (b"{", b"["):
        kind = "application/json"

    first = {"Content-Type": f"{kind}; charset=utf-8"} if content else {}
    return Reply(status, content, first | headers)


def phrase(status: int) -> str:
    """Get the words that belong to a status."""
    try:
        return http.HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


# WSGI


def read_environ(environ: WSGIEnvironment) -> Call:
    """Read a request off a WSGI server."""
    request = Request(environ)
    query = request.query_string.decode("utf-8", "replace")

    return Call(
        method=request.method,
        path=request.path,
        query=urllib.parse.parse_qsl(query, keep_blank_values=True),
        headers=Headers(list(request.headers)),
        body=request.get_data(),
        origin=request.host_url.rstrip("/"),
    )


def send_wsgi(
    reply: Reply, environ: WSGIEnvironment, start_response: StartResponse
) -> cabc.Iterable[bytes]:
    """Send an answer through a WSGI server, or fail to as scripted."""
    handler: _Handler | None = environ.get(_HANDLER)

    if reply.delay and reply.how in ("answer", "hang"):
        (handler.pause if handler else time.sleep)(reply.delay)

    if reply.silent:
        return _hang_up(reply, handler, start_response)

    headers = [*reply.headers.items(), ("Content-Length", str(reply.full_length))]
    start_response(f"{reply.status} {phrase(reply.status)}", headers)

    if reply.how == "drip":
        return _drip(reply, handler)

    return [reply.sent_body]


def _hang_up(
    reply: Reply, handler: _Handler | None, start_response: StartResponse
) -> cabc.Iterable[bytes]:
    if handler is not None:
        handler.hang_up(hard=reply.how == "reset")
        return []

    text = b"This WSGI server gives no access to the socket.\n"
    headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(text)))]
    start_response("500 Internal Server Error", headers)
    return [text]


def _drip(reply: Reply, handler: _Handler | None) -> cabc.Iterator[bytes]:
    for at in range(len(reply.body)):
        yield reply.body[at : at + 1]
        (handler.pause if handler else time.sleep)(reply.delay)


class _Server(ThreadedWSGIServer):
    """Knows its open connections, so that it can end them."""

    def __init__(self, host: str, app: WSGIApplication, listening: socket.socket):
        super().__init__(host, 0, app, _Handler, fd=listening.fileno())
        self.closing = threading.Event()
        self.handlers: dict[_Handler, threading.Thread] = {}
        self.handlers_lock = threading.Lock()

    def handle_error(self, request: t.Any, client_address: t.Any) -> None:
        # The default prints a traceback when a client goes away.
        pass


class _Handler(WSGIRequestHandler):
    # Werkzeug's own run_wsgi closes every connection after one answer. A client
    # that keeps its connections alive, or that mishandles one that died, could not
    # be told from one that does not. Here every answer knows its length.
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server
    silent = False

    def setup(self) -> None:
        super().setup()

        with self.server.handlers_lock:
            self.server.handlers[self] = threading.current_thread()

    def finish(self) -> None:
        try:
            super().finish()
        finally:
            with self.server.handlers_lock:
                del self.server.handlers[self]

    def run_wsgi(self) -> None:
        self.environ = environ = self.make_environ()
        environ[_HANDLER] = self

        try:
            # The body is read to its end, or the next request would start in it.
            environ["wsgi.input"] = io.BytesIO(Request(environ).get_data())
        except HTTPException:
            self.close_connection = True
            return

        chunks = self.server.app(environ, self._start_response)

        if not self.silent:
            self._send(chunks)

    def _start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: t.Any = None
    ) -> cabc.Callable[[bytes], object]:
        self._head = (status, headers)
        return self.wfile.write

    def _send(self, chunks: cabc.Iterable[bytes]) -> None:
        status, headers = self._head
        code, _, words = status.partition(" ")
        self.send_response(int(code), words)

        for name, value in headers:
            self.send_header(name, value)

        self.end_headers()

        if self.command == "HEAD":
            return

        sent = sum(self.wfile.write(chunk) for chunk in chunks)

        if sent < int(dict(headers)["Content-Length"]):
            self.close_connection = True

    def pause(self, seconds: float) -> None:
        """Wait, but not longer than the server lives."""
        self.server.closing.wait(seconds)

    def hang_up(self, *, hard: bool) -> None:
        """Close the connection without an answer.

        :param hard: With a reset instead of an orderly end.
        """
        self.silent = self.close_connection = True

        if hard:
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            # Or socketserver would shut the connection down in good order first.
            self.connection.close()

    def end(self) -> None:
        """Wake this handler up and make it leave, from another thread."""
        try:
            self.connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def log(self, type: str, message: str, *args: t.Any) -> None:
        pass


class SimulatorServer:
    """A simulator that listens. Made by :meth:`CredlySimulator.serve`; ends with
    the ``with`` block or with :meth:`close`.
    """

    api_url: str
    """What ``CREDLY_API_URL`` has to be."""

    token_url: str
    """What ``CREDLY_TOKEN_URL`` has to be."""

    port: int
    """The port, also if it was left to the system."""

    def __init__(self, app: WSGIApplication, host: str, port: int) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET

        with socket.create_server((host, port), family=family) as listening:
            self._server = _Server(host, app, listening)

        self.port = self._server.port
        origin = f"http://[{host}]" if ":" in host else f"http://{host}"
        self.api_url = f"{origin}:{self.port}/v1"
        self.token_url = f"{origin}:{self.port}/oauth/token"
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": 0.02},
            name="credly-simulator",
            daemon=True,
        )
        self._thread.start()

    def __enter__(self) -> t.Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening and end all connections, also those that hang."""
        if self._server.closing.is_set():
            return

        self._server.closing.set()
        self._server.shutdown()
        self._thread.join()

        with self._server.handlers_lock:
            handlers = list(self._server.handlers.items())

        for handler, _ in handlers:
            handler.end()

        for _, thread in handlers:
            thread.join(timeout=1)


# responses


def register(
    answer: cabc.Callable[[Call], Reply],
    mock: t.Any,
    api_url: str,
    token_url: str,
) -> None:
    """Answer the requests that a ``responses`` mock catches.

    :param answer: What answers.
    :param mock: A ``responses.RequestsMock``, or the module itself.
    :param api_url: Base address of the API.
    :param token_url: Address of the token endpoint.
    """
    import responses

    origins = {_origin(api_url), _origin(token_url)}

    class _Service(responses.CallbackResponse):
        # One entry for both hosts and all methods: a wrong path or method must be
        # answered by the simulator, and none of them has to be called.
        def matches(self, request: requests.PreparedRequest) -> tuple[bool, str]:
            if _origin(request.url or "") in origins:
                return True, ""

            return False, "URL does not match"

        @property
        def call_count(self) -> int:
            return max(1, super().call_count)

    def callback(request: requests.PreparedRequest) -> t.Any:
        return _send_mocked(answer(_read_mocked(request, api_url, token_url)))

    entry = _Service(responses.GET, api_url, callback, content_type=None)
    mock.add(entry)


def _read_mocked(
    request: requests.PreparedRequest, api_url: str, token_url: str
) -> Call:
    url = urllib.parse.urlsplit(request.url or "")
    origin = _origin(request.url or "")
    body = request.body or b""
    options: dict[str, t.Any] = getattr(request, "req_kwargs", {})
    side: Side = "api" if origin == _origin(api_url) else "token"

    if _origin(api_url) == _origin(token_url):
        side = "both"

    return Call(
        method=request.method or "",
        path=_map_path(url.path, api_url, token_url),
        query=urllib.parse.parse_qsl(url.query, keep_blank_values=True),
        headers=Headers(list(request.headers.items())),
        body=body.encode() if isinstance(body, str) else body,
        origin=origin,
        side=side,
        timeout_missing=options.get("timeout") is None,
    )


def _map_path(path: str, api_url: str, token_url: str) -> str:
    if path == urllib.parse.urlsplit(token_url).path:
        return "/oauth/token"

    prefix = urllib.parse.urlsplit(api_url).path.rstrip("/")

    if path.startswith(f"{prefix}/"):
        path = "/v1" + path[len(prefix) :]

    return urllib.parse.unquote(path)


def _send_mocked(reply: Reply) -> t.Any:
    from requests import exceptions

    if reply.how == "hang":
        return exceptions.ReadTimeout("Read timed out.")

    if reply.silent:
        return exceptions.ConnectionError("Connection aborted.")

    if reply.how == "truncate":
        return exceptions.ChunkedEncodingError("Connection broken: IncompleteRead")

    return reply.status, dict(reply.headers), reply.body


def _origin(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}".lower()
