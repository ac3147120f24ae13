"""A strict local Credly."""

from __future__ import annotations

import collections.abc as cabc
import typing as t

from . import control
from . import endpoints
from . import serving
from .book import post_key
from .organization import Organization
from .record import Kind
from .serving import Call
from .serving import json_reply
from .serving import Reply

if t.TYPE_CHECKING:
    from wsgiref.types import StartResponse
    from wsgiref.types import WSGIEnvironment


class CredlySimulator(Organization):
    """A local Credly that refuses whatever the real service would refuse.

    Serve it over HTTP with :meth:`serve`, run it under any WSGI server (the object
    is a WSGI application), or let :meth:`register` answer what ``responses``
    catches. All of it may be used from several threads.

    What a real server might let pass, though a client should not do it, is noted in
    :attr:`problems`; a test ends with ``assert sim.problems == []``.

    :param organization_id: A UUID. Made up if left out.
    :param client_id: Client ID of the OAuth application. Made up if left out.
    :param client_secret: Client secret. Made up if left out.
    """

    def __call__(
        self, environ: WSGIEnvironment, start_response: StartResponse
    ) -> cabc.Iterable[bytes]:
        call = serving.read_environ(environ)
        reply = control.answer(self, call) or self._handle(call)
        return serving.send_wsgi(reply, environ, start_response)

    def serve(self, host: str = "127.0.0.1", port: int = 0) -> serving.SimulatorServer:
        """Serve it over HTTP in a background thread, at once. Use the result in a
        ``with`` block, or call its ``close()``.

        :param host: Address to listen on.
        :param port: Port to listen on. 0 takes a free one.
        """
        return serving.SimulatorServer(self, host, port)

    def register(
        self,
        mock: t.Any,
        *,
        api_url: str = "https://api.credly.com/v1",
        token_url: str = "https://www.credly.com/oauth/token",
    ) -> None:
        """Answer the requests that a ``responses`` mock catches. Nothing sleeps
        there: a connection that hangs is a ``ReadTimeout`` at once.

        :param mock: A ``responses.RequestsMock``, or the ``responses`` module.
        :param api_url: Base address of the API.
        :param token_url: Address of the token endpoint.
        """
        serving.register(self._handle, mock, api_url, token_url)

    def _handle(self, call: Call) -> Reply:
        with self.lock:
            self.book.settle_late()
            route = endpoints.find_route(call)
            kind: Kind = route.kind if route else "other"
            body = endpoints.read_body(call, kind)
            self.record.judge(call, kind, self.client_secret)

            try:
                reply, counts = self._decide(call, kind, route, body)
            except Exception as error:
                self.record.note(call, f"the simulator failed: {error!r}")
                reply, counts = json_reply(500, {"error": repr(error)}), False

            if kind == "issue" and counts and (key := post_key(body)) is not None:
                self.record.count_post(call, key, self.posts_allowed)

            self.record.write(call, kind, body, reply, self.clock())
            return reply

    def _decide(
        self, call: Call, kind: Kind, route: endpoints.Route | None, body: object
    ) -> tuple[Reply, bool]:
        """Get the answer, and whether it counts as an issue request."""
        if (refusal := self.over_quota(kind)) is not None:
            return refusal, False

        if (fault := self.next_fault(kind)) is None:
            reply = endpoints.answer(self, call, route)
            return reply, reply.status in (201, 422)

        if fault.how == "late" and route is not None and kind == "issue":
            endpoints.issue_late(self, call, route, body, fault.delay)

        true = endpoints.answer(self, call, route) if fault.needs_true_answer else None
        reply = fault.reply(kind, true)
        return reply, reply.silent or reply.status not in (401, 429)
