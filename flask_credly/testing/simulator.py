"""A strict local Credly."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import json
import typing as t

from . import access
from . import control
from . import endpoints
from . import orders
from . import serving
from .organization import Organization
from .organization import Service
from .record import Kind
from .record import Received
from .serving import Call
from .serving import json_reply
from .serving import Reply

if t.TYPE_CHECKING:
    from wsgiref.types import StartResponse
    from wsgiref.types import WSGIEnvironment


class CredlySimulator(Organization):
    """A local Credly that refuses whatever the real service would refuse.

    Serve it over HTTP with :meth:`serve`, run it under any WSGI server (the object
    is a WSGI application), or let it answer the requests that ``responses`` catches
    with :meth:`register`. All methods may be called from several threads.

    :attr:`problems` lists requests that a real server might accept but that a client
    should not send. End a test with ``assert sim.problems == []``.

    The simulator is an organization itself, which is enough for most tests.
    :meth:`add_organization` adds others. Each organization has its own credentials,
    templates, badges, record, switches, faults and rate limit. All of them share the
    clock and Credly's users.

    :param organization_id: A UUID. Random by default.
    :param client_id: Client ID of the OAuth application. Random by default.
    :param client_secret: Client secret. Random by default.
    """

    def __init__(
        self,
        organization_id: str | None = None,
        client_id: str | None = None,
        client_secret: str | None = None,
    ) -> None:
        super().__init__(Service(), organization_id, client_id, client_secret)
        self._traffic: list[Received] = []

    def __call__(
        self, environ: WSGIEnvironment, start_response: StartResponse
    ) -> cabc.Iterable[bytes]:
        call = serving.read_environ(environ)
        reply = control.answer(self.organizations, call) or self._handle(call)
        return serving.send_wsgi(reply, environ, start_response)

    def serve(self, host: str = "127.0.0.1", port: int = 0) -> serving.SimulatorServer:
        """Start serving it over HTTP in a background thread. Use the result in a
        ``with`` block, or call its ``close()``.

        :param host: Address to listen on.
        :param port: Port to listen on. 0 chooses a free one.
        """
        return serving.SimulatorServer(self, host, port)

    def register(
        self,
        mock: t.Any,
        *,
        api_url: str = "https://api.credly.com/v1",
        token_url: str = "https://www.credly.com/oauth/token",
    ) -> None:
        """Answer the requests that a ``responses`` mock catches. Nothing sleeps here: a
        connection that hangs raises ``ReadTimeout`` immediately.

        :param mock: A ``responses.RequestsMock``, or the ``responses`` module.
        :param api_url: Base address of the API.
        :param token_url: Address of the token endpoint.
        """
        serving.register(self._handle, mock, api_url, token_url)

    # Organizations

    def add_organization(
        self,
        id: str | None = None,
        *,
        client_id: str | None = None,
        client_secret: str | None = None,
    ) -> Organization:
        """Add another organization.

        :param id: A UUID. Random by default.
        :param client_id: Client ID of its OAuth application. Random by default.
        :param client_secret: Client secret. Random by default.
        :raises ValueError: If another organization has this id or Client ID.
        """
        with self.lock:
            for each in self.organizations:
                if id is not None and each.organization_id == id.lower():
                    raise ValueError(f"There is an organization {id} already.")

                if client_id is not None and each.client_id == client_id:
                    raise ValueError("There is an organization with this client_id.")

            return Organization(self.service, id, client_id, client_secret)

    @property
    def organizations(self) -> list[Organization]:
        """All organizations, starting with the simulator itself."""
        return list(self.service.organizations)

    @property
    def traffic(self) -> list[Received]:
        """The requests of all organizations in the order they arrived."""
        with self.lock:
            return list(self._traffic)

    def advance(self, seconds: float) -> None:
        """Move the simulator's time forward."""
        with self.lock:
            self.service.offset += seconds

    def reset(self) -> None:
        """Delete the badges, mails, record, faults and problems of all organizations,
        and end their rate limits. Templates, credentials, tokens and switches stay.
        """
        with self.lock:
            self._traffic.clear()
            super().reset()

            for each in self.organizations[1:]:
                each.reset()

    # One request

    def _handle(self, call: Call) -> Reply:
        with self.lock:
            route = endpoints.find_route(call)
            kind: Kind = route.kind if route else "other"
            body = endpoints.read_body(call, kind)
            one = access.whose(self.organizations, call)
            one.book.agenda.settle()
            one.record.judge(call, kind, self.service.secrets())
            self._judge_writing(one, call)

            try:
                reply, counts = _decide(one, call, kind, route, body)
            except Exception as error:
                one.record.note(call, f"the simulator failed: {error!r}")
                reply, counts = json_reply(500, {"error": repr(error)}), False

            if counts:
                self._count_writes(one, call, kind, route, body)

            received = one.record.write(
                call,
                kind,
                body,
                reply,
                at=self.clock(),
                organization_id=one.organization_id,
            )
            self._traffic.append(received)
            return reply

    def _count_writes(
        self,
        one: Organization,
        call: Call,
        kind: Kind,
        route: endpoints.Route | None,
        body: object,
    ) -> None:
        # A badge that was asked for with others was asked for.
        counted: Kind = "issue" if kind == "batch" else kind

        for about in endpoints.what_is_written(one, route, body):
            one.record.count_write(call, counted, about, one.posts_allowed)

    def _judge_writing(self, one: Organization, call: Call) -> None:
        # Whoever connects may enter an id that is not theirs, and is refused when the
        # templates are read. To write with another one's token is to mix them up.
        if call.method == "GET" or (asked := access.asked_organization(call)) is None:
            return

        known = {each.organization_id for each in self.organizations}

        if asked in known - {one.organization_id}:
            text = f"with a token of organization {one.organization_id}"
            one.record.note(call, text)


def _decide(
    one: Organization,
    call: Call,
    kind: Kind,
    route: endpoints.Route | None,
    body: object,
) -> tuple[Reply, bool]:
    """Get the answer, and whether it counts where the request writes."""
    if (refusal := one.over_quota(kind)) is not None:
        return one.slowly(refusal), False

    if (fault := one.next_fault(kind)) is None:
        reply = endpoints.answer(one, call, route)
        known = (200, 201) if kind == "batch" else (200, 201, 422)
        return one.slowly(reply), reply.status in known

    if kind == "batch" and fault.only is not None:
        body = {"badges": orders.read_batch(body)[: fault.only]}
        call = dataclasses.replace(call, body=json.dumps(body).encode())

    if fault.how == "late" and route is not None:
        endpoints.write_late(one, call, route, body, fault.delay)

    true = endpoints.answer(one, call, route) if fault.needs_true_answer else None
    reply = fault.reply(kind, true)
    # What refuses one of several badges refuses them all, and says nothing of the rest.
    nothing = range(400, 500) if kind == "batch" else (401, 429)
    return one.slowly(reply), reply.silent or reply.status not in nothing
