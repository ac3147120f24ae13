"""What somebody may try to do to a site through this extension, and that it does not
work. Which threat has which test is in docs/threats.md.
"""

from __future__ import annotations

import ast
import collections.abc as cabc
import contextlib
import csv
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
        credly.fail("issue", times=2, status=422, body={"data": {"message": "No."}})
        host.complete("1")
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
    # What ends something comes after what needs it.
    last = ("/resume", "/stop", "/mappings/1/remove", "/credly/remove")
    order = [
        *(path for _, path in unsafe(host.app) if not path.endswith(last)),
        *(f"{WINDOW}{path}" for path in ("/resume", "/backfills/1/stop")),
        *(f"{WINDOW}{path}" for path in ("/mappings/1/remove", "/remove")),
    ]
    idle = []

    for path in order:
        before = snapshot(host, credly)
        client.post(path, data=data)

        if snapshot(host, credly) == before:
            idle.append(path)

    assert sorted(order) == sorted({path for _, path in unsafe(host.app)})
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
