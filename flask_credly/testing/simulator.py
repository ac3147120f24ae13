"""A strict local Credly: one organization, its templates and its badges."""

from __future__ import annotations

import base64
import binascii
import collections
import collections.abc as cabc
import copy
import dataclasses
import datetime as dt
import html
import json
import random
import re
import secrets
import threading
import time
import typing as t
import urllib.parse
import uuid

from . import rules
from . import serving
from .rules import Refusal
from .rules import Row
from .serving import Call
from .serving import Fault
from .serving import json_reply
from .serving import Reply

if t.TYPE_CHECKING:
    from wsgiref.types import StartResponse
    from wsgiref.types import WSGIEnvironment

Kind = t.Literal[
    "token", "templates", "template", "issue", "look-up", "organization", "other"
]

KINDS: tuple[Kind, ...] = t.get_args(Kind)

_TOKEN_SECONDS = 7200
_LIST_PARAMETERS = ("filter", "sort", "page")
_SECRET_PARAMETERS = (
    "client_id",
    "client_secret",
    "access_token",
    "bearer_token",
    "token",
    "api_key",
)
_TOKEN_FIELDS = ("grant_type", "client_id", "client_secret", "scope")
_BAD_TOKEN = "You specified an invalid authorization token."
_REPEATED_PAGE = re.compile(r"/api/v1/")
_FORBIDDEN = re.compile(r"/v1/organizations/[^/]+/badges/.+")


@dataclasses.dataclass(frozen=True)
class Received:
    """One request as it arrived.

    :param method: The HTTP method.
    :param path: The decoded path, as sent.
    :param query: The decoded query parameters.
    :param headers: The headers. ``Authorization`` is ``"***"``.
    :param json: The decoded JSON body, or the form of a token request with
        ``client_secret`` as ``"***"``. ``None`` if it could not be read.
    :param status: The status sent, ``None`` if the connection was just closed.
    :param at: The simulator's time.
    :param kind: What was asked for.
    """

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    json: object | None
    status: int | None
    at: float
    kind: Kind


@dataclasses.dataclass
class _Token:
    scopes: tuple[str, ...]
    expires_at: float
    revoked: bool = False


@dataclasses.dataclass
class _Entry:
    """A badge in Credly's book."""

    row: Row
    booked_at: float
    asked_for: bool

    @property
    def stands(self) -> bool:
        """Whether the badge is in the way of another one."""
        replaced = self.row["replacement_badge_id"] is not None
        return self.row["state"] != "revoked" and not replaced


@dataclasses.dataclass(frozen=True)
class _Route:
    kind: Kind
    method: str
    pattern: re.Pattern[str]
    answer: str
    side: serving.Side = "api"
    scope: str | None = None


def _route(
    kind: Kind, method: str, path: str, answer: str, scope: str | None
) -> _Route:
    pattern = re.sub(r"<(\w+)>", r"(?P<\1>[^/]+)", f"/v1/organizations{path}")
    return _Route(kind, method, re.compile(pattern), answer, scope=scope)


_ROUTES = (
    _Route("token", "POST", re.compile("/oauth/token"), "_token", side="token"),
    _route("organization", "GET", "", "_organizations", None),
    _route("organization", "GET", "/<org>", "_organization", None),
    _route(
        "templates", "GET", "/<org>/badge_templates", "_list_templates",
        "badge_templates",
    ),
    _route(
        "template", "GET", "/<org>/badge_templates/<id>", "_one_template",
        "badge_templates",
    ),
    _route("issue", "POST", "/<org>/badges", "_issue", "issued_badges"),
    _route("look-up", "GET", "/<org>/badges", "_list_badges", "issued_badges"),
    _route("look-up", "GET", "/<org>/badges/<id>", "_one_badge", "issued_badges"),
)  # fmt: skip


class CredlySimulator:
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

    organization_mismatch_status: int
    """Answer for another organization's id: 401, 403 or 404 (default)."""

    organization_status: int
    """Answer to ``GET /organizations/<id>``: 200 or 403 (default)."""

    unauthorized_body: t.Literal["empty", "json", "html"]
    """Body of an API 401."""

    unknown_filter: t.Literal["ignore", "refuse"]
    """Whether a filter key that is not known is ignored, or answered 400."""

    ignored_filters: set[str]
    """Filter keys that are known, but pretended not to be: they select nothing
    out, so that strangers' badges are in the list.
    """

    look_up_lag: float
    """Seconds for which a new badge does not show in lists."""

    error_shape: t.Literal["message", "list", "string"]
    """Whether a 422 has ``errors``, with ``messages`` as list or string."""

    email_filter_finds_accepted: bool
    """Whether the ``recipient_email`` filter finds accepted badges."""

    granted_scopes: tuple[str, ...]
    """Scopes that the OAuth application may ask for."""

    posts_allowed: int
    """Issue requests for one template and earner before it is a problem. A test
    in which an admin retries by hand needs more than the default of 2.
    """

    problems: list[str]
    """What a real server might let pass, but a client should not do."""

    def __init__(
        self,
        organization_id: str | None = None,
        client_id: str | None = None,
        client_secret: str | None = None,
    ) -> None:
        self.organization_id = (organization_id or str(uuid.uuid4())).lower()
        self.client_id = client_id or secrets.token_urlsafe(32)
        self.client_secret = client_secret or secrets.token_urlsafe(32)
        self.organization_mismatch_status = 404
        self.organization_status = 403
        self.unauthorized_body = "empty"
        self.unknown_filter = "ignore"
        self.ignored_filters = set()
        self.look_up_lag = 0.0
        self.error_shape = "message"
        self.email_filter_finds_accepted = True
        self.granted_scopes = ("badge_templates", "issued_badges")
        self.posts_allowed = 2
        self.problems = []

        self._lock = threading.RLock()
        self._offset = 0.0
        self._client_exists = True
        self._templates: dict[str, Row] = {}
        self._accounts: dict[str, str] = {}
        self._tokens: dict[str, _Token] = {}
        self._book: list[_Entry] = []
        self._index: collections.defaultdict[tuple[str, str], list[_Entry]] = (
            collections.defaultdict(list)
        )
        self._received: list[Received] = []
        self._faults: list[Fault] = []
        self._late: list[tuple[float, object]] = []
        self._posts: collections.Counter[tuple[str, str]] = collections.Counter()
        self._rate_limit: serving.RateLimit | None = None

    # Ways in

    def __call__(
        self, environ: WSGIEnvironment, start_response: StartResponse
    ) -> cabc.Iterable[bytes]:
        call = serving.read_environ(environ)

        if call.path.startswith("/_simulator/"):
            reply = self._control(call)
        elif call.path.startswith("/badges/"):
            reply = self._public_page(call.path.removeprefix("/badges/"))
        else:
            reply = self._handle(call)

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

    # Time

    def clock(self) -> float:
        """Get the simulator's time in epoch seconds."""
        return time.time() + self._offset

    def advance(self, seconds: float) -> None:
        """Move the simulator's time forward."""
        with self._lock:
            self._offset += seconds

    def _now(self) -> dt.datetime:
        return dt.datetime.fromtimestamp(self.clock(), dt.UTC)

    # Templates

    def add_template(
        self,
        name: str,
        *,
        id: str | None = None,
        state: str = "active",
        allow_duplicate_badges: bool = False,
        image: bool = True,
    ) -> str:
        """Add a badge template. Get its id.

        :param name: Its name. Two templates may share one.
        :param id: A UUID. Made up if left out.
        :param state: ``"active"``, ``"archived"`` or ``"draft"``.
        :param allow_duplicate_badges: Whether an earner can get it twice.
        :param image: Whether it has an image. A draft never shows one.
        """
        _check_state(state)

        with self._lock:
            template_id = (id or str(uuid.uuid4())).lower()
            self._templates[template_id] = rules.template_row(
                id=template_id,
                name=name,
                state=state,
                allow_duplicate_badges=allow_duplicate_badges,
                image=image,
                organization=rules.organization_row(self.organization_id),
                now=self._now(),
                unknown_keys=len(self._templates) % 3 == 1,
            )

        return template_id

    def change_template(self, id: str, **changes: t.Any) -> None:
        """Change a template as its owner would: ``state=``, ``name=`` or any other
        key of its row.

        :param id: The template's id.
        """
        with self._lock:
            row = self._templates[id]

            if unknown := set(changes) - set(row):
                raise TypeError(f"A template has no {', '.join(sorted(unknown))}.")

            if "state" in changes:
                _check_state(changes["state"])
                row["state_updated_at"] = rules.stamp(self._now())

            row.update(changes, updated_at=rules.stamp(self._now()))

    def delete_template(self, id: str) -> None:
        """Delete a template. Issued badges stay."""
        with self._lock:
            del self._templates[id]

    # The book

    @property
    def badges(self) -> list[Row]:
        """The badges in the order issued, whether or not an answer arrived."""
        return self.badges_for()

    def badges_for(
        self,
        member_email: str | None = None,
        earner_id: str | None = None,
        template_id: str | None = None,
    ) -> list[Row]:
        """Get the badges of an earner, of a template, or of both.

        :param member_email: The address on the badge, in any case.
        :param earner_id: The ``issuer_earner_id``.
        :param template_id: The template's id.
        """
        with self._lock:
            self._book_late()
            rows = [copy.deepcopy(entry.row) for entry in self._book]

        return [
            row
            for row in rows
            if (member_email is None or _same(row["recipient_email"], member_email))
            and (earner_id is None or row["issuer_earner_id"] == earner_id)
            and (template_id is None or row["badge_template"]["id"] == template_id)
        ]

    def award(
        self,
        template_id: str,
        recipient_email: str,
        *,
        first_name: str = "Example",
        last_name: str = "Earner",
        issuer_earner_id: str | None = None,
        issued_at: dt.datetime | None = None,
    ) -> str:
        """Issue a badge as somebody would by hand, or from another system. Get its
        id.
        """
        with self._lock:
            now = self._now()
            body = {
                "badge_template_id": template_id,
                "recipient_email": recipient_email,
                "issued_to_first_name": first_name,
                "issued_to_last_name": last_name,
                "issuer_earner_id": issuer_earner_id,
                "issued_at": rules.stamp(issued_at or now),
            }
            return t.cast(str, self._write(body, now.timestamp(), asked=False)["id"])

    def accept(self, badge_id: str) -> None:
        """Accept a badge as its earner would."""
        with self._lock:
            row = self._find_badge(badge_id)
            self._change_badge(row, "accepted")
            email = row["recipient_email"].casefold()
            user_id = self._accounts.setdefault(email, str(uuid.uuid4()))
            row["user"] = {"id": user_id, "first_name": row["issued_to_first_name"]}
            row["badge_url"] = f"https://badges.example.org/badges/{badge_id}"

    def reject(self, badge_id: str) -> None:
        """Reject a badge as its earner would."""
        with self._lock:
            self._change_badge(self._find_badge(badge_id), "rejected")

    def revoke_badge(self, badge_id: str, reason: str = "Issued in error") -> None:
        """Revoke a badge as the issuer would in Credly's own pages. It does not
        stand in the way of a new one any more.
        """
        with self._lock:
            row = self._find_badge(badge_id)
            self._change_badge(row, "revoked")
            row["revocation_reason"] = reason

    def add_account(self, *emails: str) -> str:
        """Tell that these addresses belong to one Credly user. Get the user's id."""
        user_id = str(uuid.uuid4())

        with self._lock:
            self._accounts.update({email.casefold(): user_id for email in emails})

        return user_id

    def _find_badge(self, badge_id: str) -> Row:
        self._book_late()

        for entry in self._book:
            if entry.row["id"] == badge_id:
                return entry.row

        raise KeyError(badge_id)

    def _change_badge(self, row: Row, state: str) -> None:
        now = rules.stamp(self._now())
        row.update(state=state, state_updated_at=now, updated_at=now)
        row.pop("accept_badge_url", None)

    # The record

    @property
    def received(self) -> list[Received]:
        """The requests in the order they arrived."""
        with self._lock:
            return list(self._received)

    def count(self, kind: Kind) -> int:
        """Count the requests of one kind."""
        _check_kind(kind)
        return sum(request.kind == kind for request in self.received)

    def reset(self) -> None:
        """Forget badges, record, faults and problems, and lift the rate limit.
        Templates, credentials, tokens and switches stay.
        """
        with self._lock:
            self._book.clear()
            self._index.clear()
            self._received.clear()
            self._faults.clear()
            self._late.clear()
            self._posts.clear()
            self._rate_limit = None
            self.problems.clear()

            for row in self._templates.values():
                row["badges_count"] = 0

    # Credentials

    def revoke_tokens(self) -> None:
        """Make all access tokens invalid."""
        with self._lock:
            for token in self._tokens.values():
                token.revoked = True

    def revoke_client(self) -> None:
        """Delete the OAuth application: its tokens and its secret are invalid."""
        with self._lock:
            self._client_exists = False
            self.revoke_tokens()

    def restore_client(self) -> None:
        """Bring the OAuth application back. Its old tokens stay invalid."""
        with self._lock:
            self._client_exists = True

    def new_secret(self) -> str:
        """Replace the client secret. Tokens stay valid."""
        with self._lock:
            self.client_secret = secrets.token_urlsafe(32)
            return self.client_secret

    # Faults

    def fail(
        self,
        kind: Kind | t.Literal["*"],
        *,
        times: int | None = 1,
        status: int | None = None,
        body: object = None,
        headers: dict[str, str] | None = None,
        after: bool = False,
        how: serving.How = "answer",
        delay: float = 0.0,
        share: float | None = None,
        seed: int = 0,
    ) -> None:
        """Script a fault. Faults of one kind strike in the order they were scripted.

        :param kind: Which requests: ``"token"``, ``"templates"``, ``"issue"``,
            ``"look-up"``, … or ``"*"`` for all.
        :param times: How many requests. ``None`` until cleared.
        :param status: The status to send; 500 if left out.
        :param body: The body to send: text, bytes, or something to write as JSON.
        :param headers: Headers to send.
        :param after: Process the request first: the badge is in the book.
        :param how: ``"answer"`` sends the scripted answer. ``"hang"`` waits
            ``delay`` seconds and closes the connection without an answer,
            ``"reset"`` does so at once. ``"late"`` does so at once, too, and books
            the badge ``delay`` seconds later on the simulator's clock.
            ``"truncate"`` cuts the body, ``"drip"`` sends it byte by byte with
            ``delay`` seconds between: the scripted body, or the true one if none
            is scripted; the request is processed then.
        :param delay: See ``how``. With ``"answer"``, seconds before it.
        :param share: Only this share of the requests, until cleared.
        :param seed: Of the random numbers for ``share``.
        """
        if kind != "*":
            _check_kind(kind)

        if how not in serving.HOWS:
            raise ValueError(f"how is {how!r}; it must be one of {serving.HOWS}.")

        if share is not None and times == 1:
            times = None

        fault = Fault(
            kind=kind,
            times=times,
            how=how,
            after=after,
            delay=delay,
            status=status,
            body=body,
            headers=dict(headers or {}),
            share=share,
            chance=random.Random(seed),
        )

        with self._lock:
            self._faults.append(fault)

    def clear_faults(self) -> None:
        """Forget the scripted faults. The rate limit stays."""
        with self._lock:
            self._faults.clear()

    def rate_limit(
        self,
        limit: int | None,
        per_seconds: float = 60,
        *,
        retry_after: serving.RetryAfter = "seconds",
    ) -> None:
        """Answer API calls with 429 when there are too many in a fixed window of
        real time. Token requests are not counted.

        :param limit: Calls in one window. ``None`` lifts the limit.
        :param per_seconds: Length of the window.
        :param retry_after: Form of the header, or ``"none"``.
        """
        if retry_after not in serving.RETRY_AFTERS:
            raise ValueError(f"retry_after must be one of {serving.RETRY_AFTERS}.")

        with self._lock:
            self._rate_limit = (
                None
                if limit is None
                else serving.RateLimit(limit, per_seconds, retry_after)
            )

    # One request

    def _handle(self, call: Call) -> Reply:
        with self._lock:
            self._book_late()
            route, found = _find_route(call)
            kind: Kind = route.kind if route else "other"
            body = _read_body(call, kind)
            self._note_manners(call, kind)

            try:
                reply, counts = self._decide(call, kind, route, found, body)
            except Exception as error:
                self._note(call, f"the simulator failed: {error!r}")
                reply, counts = json_reply(500, {"error": repr(error)}), False

            if kind == "issue" and counts:
                self._count_post(call, body)

            self._record(call, kind, body, reply)
            return reply

    def _decide(
        self,
        call: Call,
        kind: Kind,
        route: _Route | None,
        found: dict[str, str],
        body: object,
    ) -> tuple[Reply, bool]:
        """Get the answer, and whether it counts as an issue request."""
        if kind != "token" and self._rate_limit is not None:
            if (refusal := self._rate_limit.take()) is not None:
                return refusal, False

        fault = next((f for f in self._faults if f.strikes(kind)), None)

        if fault is None:
            reply = self._true_answer(call, route, found)
            return reply, reply.status in (201, 422)

        if fault.how == "late" and kind == "issue":
            self._postpone(call, route, found, body, fault.delay)

        true = None

        if fault.needs_true_answer:
            true = self._true_answer(call, route, found)

        reply = fault.reply(kind, true)
        return reply, reply.silent or reply.status not in (401, 429)

    def _true_answer(
        self, call: Call, route: _Route | None, found: dict[str, str]
    ) -> Reply:
        try:
            if route is None:
                raise Refusal(404, "Not found")

            self._admit(call, route, found)
            answer: cabc.Callable[..., Reply] = getattr(self, route.answer)
            return answer(call, **found)
        except Refusal as refusal:
            return self._refuse(refusal)

    def _refuse(self, refusal: Refusal) -> Reply:
        if refusal.body is None:
            body = refusal.envelope(self.error_shape)
            return json_reply(refusal.status, body, refusal.headers)

        kind, text = refusal.body
        headers = {"Content-Type": kind} if text else {}
        return Reply(refusal.status, text.encode(), headers | refusal.headers)

    # Who may come in

    def _admit(self, call: Call, route: _Route, found: dict[str, str]) -> None:
        if any(self._is_secret(name, value) for name, value in call.query):
            raise Refusal(400, "Credentials do not belong in the query string.")

        if route.kind == "token":
            return

        _check_media_types(call)
        scopes = self._authenticate(call)

        if route.scope is not None and route.scope not in scopes:
            raise Refusal(
                403,
                "Insufficient scope",
                headers=_challenge("insufficient_scope", "Scope is missing"),
                body=("", ""),
            )

        if (organization := found.get("org")) is not None:
            self._check_organization(organization)

    def _authenticate(self, call: Call) -> tuple[str, ...]:
        scheme, _, value = call.headers.get("Authorization", "").partition(" ")

        if scheme.lower() == "basic":
            envelope = Refusal(401, _BAD_TOKEN).envelope("message")
            body = ("application/json", json.dumps(envelope))
            raise self._unauthorized("The access token is invalid", body)

        token = self._tokens.get(value.strip()) if scheme.lower() == "bearer" else None

        if token is None:
            raise self._unauthorized("The access token is invalid")

        if token.revoked:
            raise self._unauthorized("The access token was revoked")

        if token.expires_at <= self.clock():
            raise self._unauthorized("The access token expired")

        return token.scopes

    def _unauthorized(
        self, description: str, body: tuple[str, str] | None = None
    ) -> Refusal:
        if body is None and self.unauthorized_body == "empty":
            body = ("", "")
        elif body is None and self.unauthorized_body == "html":
            body = ("text/html", "<html><body><h1>Unauthorized</h1></body></html>")

        headers = _challenge("invalid_token", description)
        return Refusal(401, _BAD_TOKEN, headers=headers, body=body)

    def _check_organization(self, organization: str) -> None:
        if not rules.is_uuid(organization):
            raise Refusal(404, "Organization not found")

        if organization.lower() == self.organization_id:
            return

        if self.organization_mismatch_status == 401:
            raise self._unauthorized("The access token is invalid")

        raise Refusal(self.organization_mismatch_status, "Organization not found")

    # The token endpoint

    def _token(self, call: Call) -> Reply:
        if not _has_type(call.headers.get("Content-Type"), _FORM):
            raise _oauth_error(400, "invalid_request", "The body must be a form.")

        pairs = _read_form(call.body)
        form = dict(pairs)

        for name in sorted(set(form) - set(_TOKEN_FIELDS)):
            self._note(call, f"unknown token parameter {name!r}")

        if len(pairs) != len(form) or "grant_type" not in form:
            raise _oauth_error(400, "invalid_request", "A parameter is missing.")

        if form["grant_type"] != "client_credentials":
            raise _oauth_error(400, "unsupported_grant_type", "Wrong grant type.")

        given = _read_credentials(call, form)

        if not self._client_exists or given != (self.client_id, self.client_secret):
            raise _oauth_error(401, "invalid_client", "Client authentication failed.")

        # No scope asked for, no scope given: a client that forgets it must notice.
        scopes = tuple(form.get("scope", "").split())

        if not set(scopes) <= set(self.granted_scopes) & set(rules.SCOPES):
            raise _oauth_error(400, "invalid_scope", "The scope is not granted.")

        return self._new_token(scopes)

    def _new_token(self, scopes: tuple[str, ...]) -> Reply:
        token = secrets.token_urlsafe(32)
        now = self.clock()
        self._tokens[token] = _Token(scopes, now + _TOKEN_SECONDS)
        body = {
            "access_token": token,
            "token_type": "Bearer",
            "expires_in": _TOKEN_SECONDS,
            "scope": " ".join(scopes),
            "created_at": int(now),
        }
        return json_reply(200, body, {"Cache-Control": "no-store"})

    # Organization and templates

    def _organizations(self, call: Call) -> Reply:
        row = self._organization_row()
        return self._page(call, [row], "/v1/organizations")

    def _organization(self, call: Call, org: str) -> Reply:
        return json_reply(200, {"data": self._organization_row(), "metadata": {}})

    def _organization_row(self) -> Row:
        if self.organization_status != 200:
            raise Refusal(self.organization_status, "You are not authorized.")

        return rules.organization_row(self.organization_id)

    def _list_templates(self, call: Call, org: str) -> Reply:
        rows = [rules.shown_template(row) for row in self._templates.values()]
        filters = rules.TEMPLATE_FILTERS
        return self._list(call, rows, filters, rules.TEMPLATE_SORTS)

    def _one_template(self, call: Call, org: str, id: str) -> Reply:
        if (row := self._templates.get(id.lower())) is None:
            raise Refusal(404, "Badge template not found")

        return json_reply(200, {"data": rules.shown_template(row), "metadata": {}})

    # Issued badges

    def _list_badges(self, call: Call, org: str) -> Reply:
        seen_until = self.clock() - self.look_up_lag
        rows = [entry.row for entry in self._book if entry.booked_at <= seen_until]
        filters = {
            **rules.BADGE_FILTERS,
            "recipient_email": self._has_email,
            "recipient_email_all": self._has_account,
        }
        return self._list(call, rows, filters, rules.BADGE_SORTS)

    def _one_badge(self, call: Call, org: str, id: str) -> Reply:
        try:
            return json_reply(200, {"data": self._find_badge(id), "metadata": {}})
        except KeyError:
            raise Refusal(404, "Badge not found") from None

    def _has_email(self, row: Row, email: str) -> bool:
        if row["state"] == "accepted" and not self.email_filter_finds_accepted:
            return False

        return _same(row["recipient_email"], email)

    def _has_account(self, row: Row, email: str) -> bool:
        return _same(row["recipient_email"], email) or self._same_user(row, email)

    def _same_user(self, row: Row, email: str) -> bool:
        user_id = self._accounts.get(email.casefold())
        owner_id = self._accounts.get(row["recipient_email"].casefold())
        return user_id is not None and user_id == owner_id

    def _list(
        self,
        call: Call,
        rows: list[Row],
        filters: rules.Filters,
        sorts: tuple[str, ...],
    ) -> Reply:
        query = dict(call.query)

        if (text := query.get("filter")) is not None:
            clauses = self._known_clauses(call, rules.parse_filter(text), filters)
            rows = rules.select(rows, clauses, filters)

        if (text := query.get("sort")) is not None:
            rows = rules.sort(rows, text, sorts)

            for part in text.split("|"):
                if part.removeprefix("-") not in sorts:
                    self._note(call, f"unknown sort key {part!r}")

        return self._page(call, rows, call.path.removesuffix("/"))

    def _known_clauses(
        self, call: Call, clauses: list[rules.Clause], filters: rules.Filters
    ) -> list[rules.Clause]:
        for key, _ in clauses:
            if key in filters:
                continue

            if self.unknown_filter == "refuse":
                raise Refusal(400, f"Unknown filter: {key}")

            self._note(call, f"unknown filter key {key!r}")

        return [
            (key, values)
            for key, values in clauses
            if key in filters and key not in self.ignored_filters
        ]

    def _page(self, call: Call, rows: list[Row], path: str) -> Reply:
        text = dict(call.query).get("page", "1")

        if not re.fullmatch(r"[1-9][0-9]{0,8}", text):
            self._note(call, f"page is {text!r}")
            text = "1"

        # Not the prefix that was called, and neither filter nor sort: so the real
        # service was seen to do.
        url = f"{call.origin}/api{path}"
        return json_reply(200, rules.page(rows, int(text), url))

    # Issuing

    def _issue(self, call: Call, org: str) -> Reply:
        body = _require_json(call)

        for name in rules.unknown_fields(body):
            self._note(call, f"unknown field {name!r}")

        row = self._write(body, self.clock(), asked=True)
        return json_reply(201, {"data": row, "metadata": {}})

    def _write(self, body: object, at: float, *, asked: bool) -> Row:
        now = dt.datetime.fromtimestamp(at, dt.UTC)
        order = rules.read_order(body, self._templates, now)
        template = self._templates[order.template_id]
        row = rules.badge_row(order, template, now)
        twin = self._find_twin(order)

        if twin is not None and not template["allow_duplicate_badges"]:
            self._settle_duplicate(order, row, twin)

        if asked:
            self._note_second(order, row)

        template["badges_count"] += 1
        self._enter(_Entry(row, at, asked))
        return row

    def _find_twin(self, order: rules.Order) -> Row | None:
        emails = {order.email.casefold(), *self._emails_of(order.email)}
        keys = [_email_key(email) for email in emails]

        if order.earner_id:
            keys.append(_earner_key(order.earner_id))

        for key in keys:
            for entry in self._index[order.template_id, key]:
                if entry.stands:
                    return entry.row

        return None

    def _emails_of(self, email: str) -> list[str]:
        if (user_id := self._accounts.get(email.casefold())) is None:
            return []

        return [known for known, id in self._accounts.items() if id == user_id]

    def _enter(self, entry: _Entry) -> None:
        row = entry.row
        template_id = row["badge_template"]["id"]
        self._book.append(entry)
        self._index[template_id, _email_key(row["recipient_email"])].append(entry)

        if row["issuer_earner_id"]:
            self._index[template_id, _earner_key(row["issuer_earner_id"])].append(entry)

    def _settle_duplicate(self, order: rules.Order, row: Row, twin: Row) -> None:
        if order.behavior == "allow":
            return

        if order.behavior != "replace":
            text = "already has this badge"
            raise Refusal(
                422,
                f"Validation failed: User {text}",
                errors=[("recipient_email", text)],
            )

        twin["replacement_badge_id"] = row["id"]
        row["replaces_badge_id"] = twin["id"]
        row.update(rules.issued_keys(twin["issued_at"]))

    def _postpone(
        self,
        call: Call,
        route: _Route | None,
        found: dict[str, str],
        body: object,
        delay: float,
    ) -> None:
        try:
            self._admit(call, t.cast(_Route, route), found)
        except Refusal:
            return

        self._late.append((self.clock() + delay, body))

    def _book_late(self) -> None:
        now = self.clock()
        due = [item for item in self._late if item[0] <= now]
        self._late = [item for item in self._late if item[0] > now]

        for at, body in sorted(due, key=lambda item: item[0]):
            try:
                self._write(body, at, asked=True)
            except Refusal:
                pass

    # Manners

    def _note(self, call: Call, text: str) -> None:
        self.problems.append(f"{call.method} {call.path}: {text}")

    def _note_manners(self, call: Call, kind: Kind) -> None:
        if not call.headers.get("User-Agent"):
            self._note(call, "no User-Agent")

        if call.timeout_missing:
            self._note(call, "no timeout")

        if _REPEATED_PAGE.match(call.path):
            self._note(call, "a page URL of an answer was followed")

        if kind == "other" and call.method != "GET" and _FORBIDDEN.match(call.path):
            self._note(call, "revoke, replace, delete and batch are not to be called")

        if kind != "token" and self.client_secret.encode() in call.body:
            self._note(call, "the client secret in the body")

        self._note_query(call, kind)

    def _note_query(self, call: Call, kind: Kind) -> None:
        allowed = _LIST_PARAMETERS if kind in ("templates", "look-up") else ()
        names = [name for name, _ in call.query]

        for name, value in call.query:
            if self._is_secret(name, value):
                self._note(call, f"credentials in the query string ({name!r})")
            elif name not in allowed and kind != "other":
                self._note(call, f"unknown query parameter {name!r}")

        if len(names) != len(set(names)):
            self._note(call, "a query parameter is repeated")

    def _is_secret(self, name: str, value: str) -> bool:
        if name.lower() in _SECRET_PARAMETERS or value in self._tokens:
            return True

        return self.client_secret in value

    def _count_post(self, call: Call, body: object) -> None:
        if (key := _post_key(body)) is None:
            return

        self._posts[key] += 1

        if self._posts[key] > self.posts_allowed:
            self._note(
                call,
                f"issue request no. {self._posts[key]} for template {key[0]}"
                f" and {key[1]}",
            )

    def _note_second(self, order: rules.Order, row: Row) -> None:
        key = (order.template_id, _who(order.earner_id, order.email))

        for entry in self._index[key]:
            if entry.asked_for and entry.row["replacement_badge_id"] != row["id"]:
                self.problems.append(f"second badge of template {key[0]} for {key[1]}")
                return

    def _record(self, call: Call, kind: Kind, body: object, reply: Reply) -> None:
        headers = {name.title(): value for name, value in call.headers.items()}

        if "Authorization" in headers:
            headers["Authorization"] = "***"

        if isinstance(body, dict) and "client_secret" in body:
            body = body | {"client_secret": "***"}

        query = {
            name: "***" if self._is_secret(name, value) else value
            for name, value in call.query
        }
        self._received.append(
            Received(
                method=call.method,
                path=call.path,
                query=query,
                headers=headers,
                json=body,
                status=None if reply.silent else reply.status,
                at=self.clock(),
                kind=kind,
            )
        )

    # Control over HTTP

    def _control(self, call: Call) -> Reply:
        command = (call.method, call.path.removeprefix("/_simulator/"))

        if command == ("GET", "record"):
            return json_reply(200, self._report())

        commands: dict[str, cabc.Callable[..., None]] = {
            "fail": self.fail,
            "clear": self.clear_faults,
            "revoke": self.revoke_client,
            "restore": self.restore_client,
            "reset": self.reset,
            "rate-limit": self.rate_limit,
        }

        if command[0] != "POST" or command[1] not in commands:
            return json_reply(404, {"error": "Unknown control endpoint."})

        try:
            commands[command[1]](**json.loads(call.body or b"{}"))
        except (TypeError, ValueError) as error:
            return json_reply(400, {"error": str(error)})

        return json_reply(200, {"ok": True})

    def _public_page(self, badge_id: str) -> Reply:
        """Show a badge to a browser, as Credly's site does."""
        for badge in self.badges:
            if badge["id"] == badge_id:
                name = html.escape(badge["badge_template"]["name"])
                first, last = (
                    badge["issued_to_first_name"],
                    badge["issued_to_last_name"],
                )
                person = html.escape(f"{first} {last}")
                page = (
                    '<!doctype html><html lang="en"><meta charset="utf-8">'
                    f"<title>{name}</title><h1>{name}</h1><p>Issued to {person} by the"
                    " simulator that stands in for Credly.</p></html>"
                )
                content = {"Content-Type": "text/html; charset=utf-8"}
                return Reply(200, page.encode(), content)

        return json_reply(404, {"error": "There is no such badge."})

    def _report(self) -> Row:
        with self._lock:
            return {
                "badges": self.badges,
                "received": [dataclasses.asdict(one) for one in self._received],
                "problems": list(self.problems),
                "templates": copy.deepcopy(list(self._templates.values())),
                "credentials": {
                    "organization_id": self.organization_id,
                    "client_id": self.client_id,
                    "client_secret": self.client_secret,
                },
            }


# Reading a request

_FORM = "application/x-www-form-urlencoded"
_JSON = "application/json"


def _find_route(call: Call) -> tuple[_Route | None, dict[str, str]]:
    path = call.path.removesuffix("/")

    for route in _ROUTES:
        if call.method != route.method or call.side not in (route.side, "both"):
            continue

        if (match := route.pattern.fullmatch(path)) is not None:
            return route, match.groupdict()

    return None, {}


def _has_type(value: str | None, media_type: str) -> bool:
    return (value or "").partition(";")[0].strip().lower() == media_type


def _check_media_types(call: Call) -> None:
    accepted = call.headers.get("Accept", "").split(",")

    if not any(_has_type(part, _JSON) for part in accepted):
        raise Refusal(400, "The Accept header must name application/json.")

    if call.method == "POST" and not _has_type(call.headers.get("Content-Type"), _JSON):
        raise Refusal(400, "The Content-Type must be application/json.")


def _read_body(call: Call, kind: Kind) -> object | None:
    """Read a body for the record, without judging it."""
    if kind == "token":
        return dict(_read_form(call.body))

    try:
        return t.cast(object, json.loads(call.body))
    except ValueError:
        return None


def _read_form(body: bytes) -> list[tuple[str, str]]:
    text = body.decode("utf-8", "replace")
    return urllib.parse.parse_qsl(text, keep_blank_values=True)


def _require_json(call: Call) -> object:
    try:
        body: object = json.loads(call.body)
    except ValueError:
        raise Refusal(400, "The request body is not valid JSON.") from None

    if b"\\u0000" in call.body:
        raise Refusal(400, "The request body contains a null byte.")

    return body


def _read_credentials(call: Call, form: dict[str, str]) -> tuple[str, str]:
    in_body = "client_id" in form or "client_secret" in form
    scheme, _, value = call.headers.get("Authorization", "").partition(" ")

    if not value:
        return form.get("client_id", ""), form.get("client_secret", "")

    if in_body:
        raise _oauth_error(400, "invalid_request", "Two ways of authentication.")

    if scheme.lower() != "basic":
        return "", ""

    try:
        text = base64.b64decode(value, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return "", ""

    client_id, _, secret = text.partition(":")
    return urllib.parse.unquote(client_id), urllib.parse.unquote(secret)


def _oauth_error(status: int, error: str, description: str) -> Refusal:
    body = json.dumps({"error": error, "error_description": description})
    headers = {"Cache-Control": "no-store"}

    if status == 401:
        headers |= _challenge(error, description)

    return Refusal(status, description, headers=headers, body=(_JSON, body))


def _challenge(error: str, description: str) -> dict[str, str]:
    value = (
        f'Bearer realm="Credly simulator", error="{error}",'
        f' error_description="{description}"'
    )
    return {"WWW-Authenticate": value}


def _post_key(body: object) -> tuple[str, str] | None:
    """Get the template and earner that an issue body is about."""
    if not isinstance(body, dict):
        return None

    names = ("badge_template_id", "issuer_earner_id", "recipient_email")
    template_id, earner_id, email = (body.get(name) or "" for name in names)

    if not all(isinstance(value, str) for value in (template_id, earner_id, email)):
        return None

    return template_id.lower(), _who(earner_id, email)


def _who(earner_id: str | None, email: str) -> str:
    return _earner_key(earner_id) if earner_id else _email_key(email)


def _earner_key(earner_id: str) -> str:
    return f"earner {earner_id}"


def _email_key(email: str) -> str:
    return f"e-mail {email.casefold()}"


def _same(one: str, other: str) -> bool:
    return one.casefold() == other.casefold()


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; it must be one of {KINDS}.")


def _check_state(state: str) -> None:
    if state not in rules.STATES:
        raise ValueError(f"state is {state!r}; it must be one of {rules.STATES}.")
