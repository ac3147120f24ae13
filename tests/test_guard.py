"""What stands before every view: who asks, from where, with what, and whether it was
meant. In hosts that protect their forms in every way that Flask-WTF knows.
"""

from __future__ import annotations

import collections.abc as cabc
import datetime as dt
import io
import logging
import re
import traceback
import typing as t

import flask
import pytest
import sqlalchemy as sa
from conftest import every_database
from conftest import Host
from conftest import MakeHost
from flask import abort
from flask import Flask
from flask import redirect
from flask import Response
from flask_sqlalchemy import SQLAlchemy
from flask_wtf import CSRFProtect
from werkzeug.exceptions import HTTPException
from werkzeug.local import LocalProxy
from werkzeug.test import TestResponse

from flask_credly import accounts
from flask_credly import Credly
from flask_credly.admin import blueprint
from flask_credly.models import RemovedMapping
from flask_credly.models import Template
from flask_credly.testing import CredlySimulator
from tests.support.pages import HX
from tests.support.pages import WINDOW
from tests.support.surface import fill
from tests.support.surface import past_completions
from tests.support.surface import readable
from tests.support.surface import snapshot
from tests.support.surface import unsafe

pytestmark = pytest.mark.slow

SAME = {"Sec-Fetch-Site": "same-origin"}
SECRET = "c4nary-client-secret"


def forms_of(page: str) -> list[str]:
    """The forms of a page that change something."""
    return re.findall(r'<form[^>]*method="post".*?</form>', page, re.S)


def tokens_of(page: str, name: str) -> list[str]:
    return re.findall(rf'<input[^>]*name="{name}"[^>]*value="([^"]+)"', page)


# A host's own protection

PROTECTIONS: dict[str, tuple[dict[str, t.Any], bool]] = {
    "none": ({}, False),
    "all": ({}, True),
    "field": ({"WTF_CSRF_FIELD_NAME": "_token"}, False),
    "field-all": ({"WTF_CSRF_FIELD_NAME": "_token"}, True),
    "key": ({"WTF_CSRF_SECRET_KEY": "another key"}, False),
    "key-all": ({"WTF_CSRF_SECRET_KEY": "another key"}, True),
    "no-limit": ({"WTF_CSRF_TIME_LIMIT": None}, False),
    "no-limit-all": ({"WTF_CSRF_TIME_LIMIT": None}, True),
    "unchecked": ({"WTF_CSRF_CHECK_DEFAULT": False}, True),
    "no-methods": ({"WTF_CSRF_METHODS": []}, True),
    "headers": ({"WTF_CSRF_HEADERS": ["X-Token"]}, True),
    "not-strict": ({"WTF_CSRF_SSL_STRICT": False}, True),
    "traps": ({"TRAP_HTTP_EXCEPTIONS": True}, False),
    "off": ({"WTF_CSRF_ENABLED": False}, False),
    "off-all": ({"WTF_CSRF_ENABLED": False}, True),
}


@pytest.fixture(params=PROTECTIONS)
def protected(request: pytest.FixtureRequest, make_host: MakeHost) -> Host:
    """A host in production."""
    config, everywhere = PROTECTIONS[request.param]

    def setup(app: Flask, db: SQLAlchemy) -> None:
        if everywhere:
            CSRFProtect(app)

    return make_host(
        past_completions=past_completions, setup=setup, TESTING=False, **config
    )


def test_no_protection_of_the_hosts_lets_a_foreign_form_in(
    protected: Host, credly: CredlySimulator
) -> None:
    fill(protected, credly)
    before = snapshot(protected, credly)
    client = protected.app.test_client()
    client.get(WINDOW)

    for data in ({}, {"csrf_token": "x", "_token": "x"}):
        for method, path in unsafe(protected.app):
            answer = client.open(path, method=method, data=data)
            assert answer.status_code in (303, 422), (path, answer.status)

    assert snapshot(protected, credly) == before


def test_every_form_has_one_token_that_works(
    protected: Host, credly: CredlySimulator
) -> None:
    fill(protected, credly)
    name = protected.app.config.get("WTF_CSRF_FIELD_NAME", "csrf_token")
    client = protected.app.test_client()
    seen = 0

    for path in readable(protected.app):
        for headers in ({}, HX):
            page = client.get(path, headers=headers, buffered=True).text
            seen += len(forms_of(page))
            assert [len(tokens_of(form, name)) for form in forms_of(page)] == [
                1 for _ in forms_of(page)
            ], path

    assert seen > 20
    before = snapshot(protected, credly)
    (token, *_) = tokens_of(client.get(WINDOW).text, name)
    client.post(f"{WINDOW}/pause", data={name: token})
    assert snapshot(protected, credly) != before


def test_a_token_in_a_header_is_one_too(
    make_host: MakeHost, credly: CredlySimulator
) -> None:
    host = make_host(WTF_CSRF_HEADERS=["X-Token"])
    fill(host, credly)
    before = snapshot(host, credly)
    client = host.app.test_client()
    (token, *_) = tokens_of(client.get(WINDOW).text, "csrf_token")

    client.post(f"{WINDOW}/pause", headers={"X-CSRFToken": token})
    assert snapshot(host, credly) == before

    client.post(f"{WINDOW}/pause", headers={"X-Token": token})
    assert snapshot(host, credly) != before


@pytest.mark.parametrize("headers", [{}, HX], ids=["page", "htmx"])
def test_a_refused_form_shows_nothing_to_a_stranger(
    make_host: MakeHost, credly: CredlySimulator, headers: dict[str, str]
) -> None:
    """A host that protects all forms refuses before anybody was asked who this is."""
    allowed = [True]
    host = make_host(
        is_admin=lambda: allowed[0],
        past_completions=past_completions,
        setup=lambda app, db: CSRFProtect(app) and None,
    )
    fill(host, credly)
    allowed[0] = False
    client = host.app.test_client()

    for method, path in unsafe(host.app):
        answer = client.open(path, method=method, headers=headers)
        assert answer.status_code == 403, path
        assert "Python" not in answer.text
        assert credly.organization_id not in answer.text


# A view that was written without care


@pytest.fixture
def careless(
    make_host: MakeHost, monkeypatch: pytest.MonkeyPatch
) -> tuple[Host, list[str], list[bool]]:
    """A host whose pages have a view that looks after nothing, and what it did."""
    done: list[str] = []
    allowed = [True]

    def careless() -> str:
        done.append(flask.request.method)
        return "done"

    def careless_too() -> str:
        done.append(flask.request.method)
        return "done"

    monkeypatch.setattr(
        blueprint,
        "ROUTES",
        [
            *blueprint.ROUTES,
            ("GET", "/credly/careless", careless),
            ("POST", "/credly/careless", careless_too),
            ("DELETE", "/credly/careless", careless_too),
            ("TRACE", "/credly/careless", careless_too),
        ],
    )
    host = make_host(is_admin=lambda: allowed[0])
    return host, done, allowed


CARELESS = f"{WINDOW}/careless"


def test_a_careless_view_is_for_admins_only(
    careless: tuple[Host, list[str], list[bool]],
) -> None:
    host, done, allowed = careless
    allowed[0] = False
    client = host.app.test_client()

    for method in ("GET", "HEAD", "POST", "DELETE", "TRACE", "OPTIONS"):
        assert client.open(CARELESS, method=method).status_code == 403

    assert done == []


def test_a_careless_view_is_done_by_our_own_forms_only(
    careless: tuple[Host, list[str], list[bool]],
) -> None:
    host, done, _ = careless
    client = host.app.test_client()
    (token, *_) = tokens_of(client.get(WINDOW).text, "csrf_token")

    for method in ("POST", "DELETE", "TRACE"):
        client.open(CARELESS, method=method)
        client.open(CARELESS, method=method, data={"csrf_token": "wrong"})
        client.open(CARELESS, method=method, json={"csrf_token": token})
        client.open(
            CARELESS,
            method=method,
            data={"csrf_token": token},
            headers={"Origin": "https://evil.example"},
        )

    assert done == []
    assert client.options(CARELESS).status_code == 200
    assert done == []

    assert client.get(CARELESS).text == "done"
    assert client.post(CARELESS, data={"csrf_token": token}).text == "done"
    assert done == ["GET", "POST"]


class Override:
    """Middleware that a form can name another method to."""

    def __init__(self, app: t.Any) -> None:
        self.app = app

    def __call__(self, environ: t.Any, start: t.Any) -> t.Any:
        if method := environ.get("HTTP_X_HTTP_METHOD_OVERRIDE"):
            environ["REQUEST_METHOD"] = method

        return self.app(environ, start)


@pytest.mark.parametrize("late", [False, True], ids=["middleware", "before_request"])
def test_another_name_for_the_method_changes_nothing(
    make_host: MakeHost, credly: CredlySimulator, late: bool
) -> None:
    def setup(app: Flask, db: SQLAlchemy) -> None:
        if not late:
            app.wsgi_app = Override(app.wsgi_app)  # type: ignore[method-assign]
            return

        @app.before_request
        def rename() -> None:
            given = flask.request.headers.get("X-HTTP-Method-Override")
            flask.request.method = given or flask.request.method

    host = make_host(past_completions=past_completions, setup=setup)
    fill(host, credly)
    before = snapshot(host, credly)
    client = host.app.test_client()

    for sent in ("GET", "HEAD", "POST", "OPTIONS"):
        for said in ("GET", "HEAD", "POST", "OPTIONS", "PUT"):
            for _, path in unsafe(host.app):
                headers = {"X-HTTP-Method-Override": said}
                client.open(path, method=sent, headers=headers, buffered=True)

    assert snapshot(host, credly) == before


# From where


FOREIGN: dict[str, dict[str, str]] = {
    "another site": {"Sec-Fetch-Site": "cross-site"},
    "a sibling": {"Sec-Fetch-Site": "same-site"},
    "nonsense": {"Sec-Fetch-Site": "x"},
    "an old browser": {"Origin": "https://evil.example"},
    "a sibling in an old browser": {"Origin": "http://evil.localhost"},
    "a sandbox": {"Origin": "null"},
    "an odd origin": {"Origin": "http://["},
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_form_of_another_origin_does_nothing_even_with_a_token(
    make_host: MakeHost,
    credly: CredlySimulator,
    caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:
    host = make_host(past_completions=past_completions)
    fill(host, credly)
    client = host.app.test_client()
    (token, *_) = tokens_of(client.get(WINDOW).text, "csrf_token")
    before = snapshot(host, credly)
    opened = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}

    for headers in (FOREIGN[kind], {**FOREIGN[kind], **opened}):
        for method, path in unsafe(host.app):
            data = {"csrf_token": token}
            answer = client.open(path, method=method, data=data, headers=headers)
            assert answer.status_code == 403, path
            assert "came from another site" in answer.text

    assert snapshot(host, credly) == before


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Sec-Fetch-Site": "same-origin", "Origin": "http://localhost"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": "http://localhost"},
        # TLS ends at a proxy, as it does for most.
        {"Origin": "https://localhost"},
        {"Origin": "https://school.example", "X-Forwarded-Host": "school.example"},
        # A proxy that says nothing of the host, and a browser that knows better.
        {"Origin": "https://school.example", **SAME},
    ],
    ids=str,
)
def test_our_own_form_works_behind_a_proxy(
    host: Host, credly: CredlySimulator, headers: dict[str, str]
) -> None:
    fill(host, credly)
    client = host.app.test_client()
    (token, *_) = tokens_of(client.get(WINDOW).text, "csrf_token")
    client.post(f"{WINDOW}/pause", data={"csrf_token": token}, headers=headers)
    assert "Resume issuing" in client.get(WINDOW).text


OPENED = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
PICTURE = {"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
FRAME = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_nothing_is_read_by_a_page_of_another_origin(
    make_host: MakeHost, credly: CredlySimulator, site: str
) -> None:
    """As a picture, in a frame or by a script: no export is noted in the admin's name,
    and no host is asked for past completions.
    """
    asked: list[object] = []

    def past(course: object, since: object) -> list[t.Any]:
        asked.append(course)
        return []

    host = make_host(past_completions=past)
    fill(host, credly)
    client = host.app.test_client()

    for path in readable(host.app):
        for how in (PICTURE, FRAME, {}):
            for method in ("GET", "HEAD"):
                headers = {"Sec-Fetch-Site": site, **how}
                answer = client.open(path, method=method, headers=headers)
                assert answer.status_code == 403, path

        # A link is followed, but not to what leaves a trace.
        headers = {"Sec-Fetch-Site": site, **OPENED}
        answer = client.get(path, headers=headers, buffered=True)
        traced = path.endswith((".csv", "/backfill"))
        assert (answer.status_code == 403) == traced, path

    assert asked == []
    shown = client.get(f"{WINDOW}/activity").text
    assert "Export " not in shown


@pytest.mark.parametrize(
    "headers", [{}, SAME, {"Sec-Fetch-Site": "none"}], ids=["absent", "ours", "typed"]
)
def test_an_export_of_ours_is_noted(
    host: Host, credly: CredlySimulator, headers: dict[str, str]
) -> None:
    fill(host, credly)
    client = host.app.test_client()
    path = f"{WINDOW}/badges.csv"
    client.head(path, headers=headers)
    assert "Export " not in client.get(f"{WINDOW}/activity").text

    assert client.get(path, headers=headers, buffered=True).status_code == 200
    assert "Export " in client.get(f"{WINDOW}/activity").text


# What is sent


def body_of(kind: str, token: str) -> dict[str, t.Any]:
    """A request that holds the secret and is no form of ours."""
    fields = {
        "csrf_token": token,
        "organization_id": "x",
        "client_id": "x",
        "client_secret": SECRET,
    }
    bodies: dict[str, dict[str, t.Any]] = {
        "json": {"json": fields},
        "json-number": {"data": "5", "content_type": "application/json"},
        "json-text": {"json": SECRET},
        "json-list": {"json": [SECRET]},
        "json-null": {"data": "null", "content_type": "application/json"},
        "json-broken": {"data": f'{{"{SECRET}', "content_type": "application/json"},
        "json-kind": {"json": fields, "content_type": "application/x+json"},
        "text": {
            "data": f"csrf_token={token}&client_secret={SECRET}",
            "content_type": "text/plain",
        },
        "file": {"data": {**fields, "client_secret": (io.BytesIO(b"x"), SECRET)}},
        "file-besides": {"data": {**fields, "else": (io.BytesIO(b"x"), SECRET)}},
        "file-token": {"data": {**fields, "csrf_token": (io.BytesIO(b"x"), "x")}},
        "file-course": {"data": {**fields, "course": (io.BytesIO(b"x"), "x")}},
        "many": {
            "data": {**fields, **{f"f{n}": "" for n in range(1001)}},
            "content_type": "multipart/form-data",
        },
    }
    return bodies[kind]


BODIES = (
    "json json-number json-text json-list json-null json-broken json-kind text file"
    " file-besides file-token file-course many"
).split()


@pytest.mark.parametrize("kind", BODIES)
# A protected host refuses it before we do.
@pytest.mark.parametrize("everywhere", [False, True], ids=["alone", "protected"])
def test_what_is_no_form_of_ours_is_refused(
    make_host: MakeHost,
    credly: CredlySimulator,
    caplog: pytest.LogCaptureFixture,
    kind: str,
    everywhere: bool,
) -> None:
    def setup(app: Flask, db: SQLAlchemy) -> None:
        if everywhere:
            CSRFProtect(app)

    host = make_host(past_completions=past_completions, setup=setup)
    fill(host, credly)
    before = snapshot(host, credly)
    client = host.app.test_client()
    (token, *_) = tokens_of(client.get(WINDOW).text, "csrf_token")

    for method, path in unsafe(host.app):
        for headers in ({}, HX, {"X-CSRFToken": token}):
            answer = client.open(
                path, method=method, headers=headers, **body_of(kind, token)
            )
            # A host that protects all forms finds no token in what is none.
            fitting = (400, 413, 303, 422) if everywhere else (400, 413)
            redirected = answer.status_code == 200 and "HX-Redirect" in answer.headers
            assert answer.status_code in fitting or everywhere and redirected, (
                path,
                answer.text,
            )
            assert SECRET not in answer.text

    assert snapshot(host, credly) == before
    assert SECRET not in caplog.text


@pytest.mark.parametrize("bytes_", [b"%ff%fe", b"%00", b"%ED%A0%80"])
def test_the_first_of_a_repeated_field_counts(
    host: Host, credly: CredlySimulator, bytes_: bytes
) -> None:
    """For the guard and for the view alike, whatever bytes there are."""
    fill(host, credly)
    client = host.app.test_client()
    (token, *_) = tokens_of(client.get(WINDOW).text, "csrf_token")
    fields = b"&course=course:sql&course=%s&template=%s&key=%s"
    before = snapshot(host, credly)

    def post(path: str, *parts: bytes) -> TestResponse:
        kind = "application/x-www-form-urlencoded"
        return client.post(path, data=b"&".join(parts), content_type=kind)

    wrong = post(
        f"{WINDOW}/mappings",
        b"csrf_token=" + bytes_,
        b"csrf_token=" + token.encode(),
        fields % (bytes_, bytes_, bytes_),
    )
    assert "has expired" in wrong.text
    right = post(
        f"{WINDOW}/mappings",
        b"csrf_token=" + token.encode(),
        b"csrf_token=" + bytes_,
        fields % (bytes_, bytes_, bytes_),
    )
    assert right.status_code == 422
    assert "has expired" not in right.text
    assert snapshot(host, credly) == before


def test_no_traceback_shows_what_was_typed(
    make_host: MakeHost, credly: CredlySimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it goes wrong while the form is read."""
    host = make_host()

    def fail(*_: object, **__: object) -> t.NoReturn:
        raise ZeroDivisionError

    places = [
        "flask_credly.admin.forms._label",
        "flask_credly.admin.window.actor",
        "flask_credly.accounts.connect",
        "flask_credly.ledger.gates.read",
    ]

    for place in places:
        client = host.app.test_client()
        (token, *_) = tokens_of(client.get(f"{WINDOW}").text, "csrf_token")

        with monkeypatch.context() as patch:
            patch.setattr(place, fail)
            # What the form says of a value that is wrong, and of one that is right.
            secret = SECRET + ("\u00e9" if place.endswith("_label") else "")

            with pytest.raises(ZeroDivisionError) as caught:
                client.post(
                    WINDOW,
                    data={
                        "csrf_token": token,
                        "organization_id": credly.organization_id,
                        "client_id": "client",
                        "client_secret": secret,
                    },
                )

        shown = traceback.TracebackException.from_exception(
            caught.value, capture_locals=True
        )
        # The test's own client knows what it has sent.
        frames = [each for each in shown.stack if "flask_credly" in each.filename]
        assert frames
        assert SECRET not in "".join(
            f"{each.name} {each.locals}"
            for each in frames
            if "tests" not in each.filename
        )


# How a host refuses


def with_cookie(response: Response) -> Response:
    response.set_cookie("seen", "yes")
    response.headers["WWW-Authenticate"] = "Bearer"
    return response


def gone() -> Response:
    return Response("Moved", 302)


def unauthorized() -> t.NoReturn:
    abort(401)


def to_the_login() -> t.NoReturn:
    abort(with_cookie(t.cast(Response, redirect("/login?next=%2Fx"))))


REFUSALS: dict[str, tuple[cabc.Callable[[], t.Any], int, int]] = {
    # What the hook does; the status without htmx and with it.
    "login": (lambda: with_cookie(t.cast(Response, redirect("/login"))), 302, 401),
    "nowhere": (gone, 302, 302),
    "basic": (lambda: with_cookie(Response("Who?", 401)), 401, 401),
    "hidden": (lambda: abort(404), 404, 404),
    "unauthorized": (unauthorized, 401, 401),
    "aborted to the login": (to_the_login, 302, 401),
    "not modified": (lambda: Response(status=304), 304, 304),
    "tuple": (lambda: ("no", 401), 403, 403),
    "text": (lambda: "no", 403, 403),
    "proxy": (lambda: LocalProxy(lambda: True), 403, 403),
    "proxy of no": (lambda: LocalProxy(lambda: False), 403, 403),
}


@pytest.fixture(params=["plain", "traps", "handles", "protects"])
def refusing(
    request: pytest.FixtureRequest, make_host: MakeHost
) -> cabc.Callable[[cabc.Callable[[], t.Any]], Host]:
    def setup(app: Flask, db: SQLAlchemy) -> None:
        if request.param == "protects":
            CSRFProtect(app)

        if request.param == "handles":

            @app.errorhandler(Exception)
            def handle(error: Exception) -> t.Any:
                if isinstance(error, HTTPException):
                    return error.get_response()

                return "all is lost", 500

    config = {"TRAP_HTTP_EXCEPTIONS": True} if request.param == "traps" else {}
    return lambda hook: make_host(
        is_admin=hook, setup=setup, PROPAGATE_EXCEPTIONS=False, **config
    )


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_is_sent_as_the_host_means_it(
    refusing: cabc.Callable[[cabc.Callable[[], t.Any]], Host], name: str
) -> None:
    hook, status, with_htmx = REFUSALS[name]
    client = refusing(hook).app.test_client()

    for path, method in ((WINDOW, "GET"), (f"{WINDOW}/pause", "POST")):
        for headers, expected in (({}, status), (HX, with_htmx)):
            client.delete_cookie("seen")
            answer = client.open(path, method=method, headers=headers)
            assert answer.status_code == expected

            if name in ("login", "basic", "aborted to the login"):
                assert client.get_cookie("seen") is not None
                assert answer.headers["WWW-Authenticate"] == "Bearer"

            if name in ("login", "aborted to the login"):
                where = answer.headers["HX-Redirect" if headers else "Location"]
                assert where.startswith("/login")

                if headers:
                    assert "Location" not in answer.headers
                    assert answer.data == b""


def test_one_answer_for_all_refusals_stays_as_it_was(make_host: MakeHost) -> None:
    """A host may make it once."""
    answer = redirect("/login")
    client = make_host(is_admin=lambda: answer).app.test_client()

    for _ in range(2):
        assert client.get(WINDOW, headers=HX).headers["HX-Redirect"] == "/login"
        assert client.get(WINDOW).location == "/login"


def test_an_abort_is_no_failure_of_the_hook(
    make_host: MakeHost, caplog: pytest.LogCaptureFixture
) -> None:
    def setup(app: Flask, db: SQLAlchemy) -> None:
        @app.errorhandler(401)
        def login(error: object) -> t.Any:
            return redirect("/login")

        @app.get("/settings")
        def settings() -> str:
            return flask.render_template_string("[{{ credly_card() }}]")

    client = make_host(is_admin=unauthorized, setup=setup).app.test_client()
    caplog.set_level(logging.INFO)
    assert client.get(WINDOW).location == "/login"
    assert client.get(WINDOW, headers=HX).headers["HX-Redirect"] == "/login"
    # The host's own page goes on without the card.
    assert client.get("/settings").text == "[]"
    assert "hook failed" not in caplog.text


@pytest.mark.parametrize(
    "name", ["courses", "is_admin", "member", "past_completions", "actor"]
)
def test_a_hook_that_would_have_to_be_awaited_is_refused_at_the_start(
    name: str,
) -> None:
    async def hook(*_: object) -> bool:
        return True

    credly = Credly()
    credly.courses(lambda: [])
    credly.is_admin(lambda: True)
    getattr(credly, name)(hook)
    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
    SQLAlchemy().init_app(app)

    with pytest.raises(RuntimeError, match=f"@credly.{name}.*Use 'def' instead"):
        credly.init_app(app)


# What was removed


@every_database
def test_only_a_removal_of_the_last_hour_is_offered_to_be_undone(
    host: Host, credly: CredlySimulator
) -> None:
    """And nothing that an address or a form says of it."""
    fill(host, credly)
    other = credly.add_template("Badge of somebody else")

    with host.app.app_context():
        accounts.sync_templates(host.state)

    client = host.app.test_client()

    def post(path: str, **data: str) -> TestResponse:
        (token, *_) = tokens_of(client.get(WINDOW).text, "csrf_token")
        data["csrf_token"] = token
        return client.post(f"{WINDOW}/mappings{path}", data=data)

    def leave_message() -> None:
        # As a page of a sibling might, that shares the cookie.
        with client.session_transaction() as session:
            session["credly_said"] = ("Mapping removed.", False)

    def mapped() -> list[tuple[str, str]]:
        with host.app.app_context():
            found = accounts.list_mappings(host.db.session, "default")
            return [(each.course_id, each.template.name) for each in found]

    for query in (f"course:sql&template={other}", "1", "99", "9" * 30, "x", ""):
        leave_message()
        assert "Undo" not in client.get(f"{WINDOW}?undo={query}").text

    removed = post("/1/remove").location
    assert mapped() == []
    post("", undo="99", course="course:sql", template=other)
    assert mapped() == []

    # Not for ever
    with host.app.app_context():
        time = sa.update(RemovedMapping).values(removed_at=RemovedMapping.removed_at)
        past = dt.datetime.now(dt.UTC) - dt.timedelta(hours=2)
        was = host.db.session.scalar(sa.select(RemovedMapping.removed_at))
        host.db.session.execute(time.values(removed_at=past))
        host.db.session.commit()

    leave_message()
    assert "Undo" not in client.get(removed).text
    post("", undo="1")
    assert mapped() == []
    assert "It is too late to undo this." in client.get(WINDOW).text

    with host.app.app_context():
        host.db.session.execute(time.values(removed_at=was))
        host.db.session.commit()

    leave_message()
    assert "Undo" in client.get(removed).text
    post("", undo="1", course="course:sql", template=other)
    assert mapped() == [("py-101", "Python Badge")]
    leave_message()
    assert "Undo" not in client.get(removed).text

    # The same number may be given once more.
    (mapping_id, *_) = re.findall(r"/mappings/(\d+)/remove", client.get(WINDOW).text)
    post(f"/{mapping_id}/remove")
    post("", undo=mapping_id)
    assert mapped() == [("py-101", "Python Badge")]

    with host.app.app_context():
        accounts.remove(host.state)
        assert not host.db.session.scalars(sa.select(RemovedMapping)).all()


# What Credly lists


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://images.credly.com/a.png", True),
        ("https://credly.com.evil.example/a.png", False),
        ("https://evilcredly.com/a.png", False),
        ("https://images.credly.com@evil.example/a.png", False),
        ("https://evil.example\\@images.credly.com/a.png", False),
        ("https://images.credly.com:8443/a.png", False),
        ("https://images.credly.com", False),
        ("http://images.credly.com/a.png", False),
        ("javascript:alert(1)", False),
    ],
)
def test_only_pictures_of_credly_are_shown(
    host: Host, credly: CredlySimulator, url: str, shown: bool
) -> None:
    fill(host, credly)

    with host.app.app_context():
        host.db.session.execute(sa.update(Template).values(image_url=url))
        host.db.session.commit()

    page = host.app.test_client().get(WINDOW)
    assert (f'<img src="{url}"' in page.text) == ("<img" in page.text) == shown
    policy = page.headers["Content-Security-Policy"]
    assert "img-src 'self' https://*.credly.com data:;" in policy


@every_database
def test_badge_templates_of_one_name_can_be_told_apart(
    host: Host, credly: CredlySimulator
) -> None:
    first = fill(host, credly)
    second = credly.add_template("python badge")
    others = [credly.add_template("École") for _ in range(2)]
    alone = credly.add_template("Data Badge")

    with host.app.app_context():
        accounts.sync_templates(host.state)

    client = host.app.test_client()
    page = client.get(f"{WINDOW}?mapping=new").text
    found = dict(re.findall(r'<option value="([0-9a-f-]{36})"[^>]*>([^<]*)<', page))
    assert found == {
        first: f"Python Badge ({first})",
        second: f"python badge ({second})",
        alone: "Data Badge",
        **{each: f"École ({each})" for each in others},
    }
    # And in the row of the mapping
    assert f">{first}</div>" in page
    part = client.get(f"{WINDOW}/mappings/1/row", headers=HX).text
    assert f">{first}</div>" in part
