"""All that can be reached from outside, and what an application holds."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import datetime as dt
import typing as t

import sqlalchemy as sa
from conftest import a_member
from conftest import connect
from conftest import Host
from flask import Flask

from flask_credly import Course
from flask_credly import Member
from flask_credly.ledger import backfills
from flask_credly.ledger import unrecorded
from flask_credly.testing import CredlySimulator
from tests.support.pages import digest

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")


SAFE = {"GET", "HEAD", "OPTIONS"}


# What each unsafe route would need to do something.
FIELDS = {
    "course": "course:sql",
    "email": "a@example.org",
    "first_name": "A",
    "last_name": "B",
    "completed": "2026-01-31",
    "step": "confirm",
    "reason": "By mistake.",
    "tell": "no",
    "group": "2026",
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
        backfills.start(host.state.engine, "default", 1)
        unrecorded.add(
            host.state.engine, "default", unrecorded.Count(9, dt.datetime.now(dt.UTC))
        )
        states = {row.state for row in host.rows()}
        assert states == {"failed", "issued", "none"}
        host.db.session.remove()

    return template_id


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
