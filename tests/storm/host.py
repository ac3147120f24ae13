"""The host application: members who complete courses."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
import typing as t
from collections import abc as cabc

import sqlalchemy as sa
from flask import Flask
from flask import request
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import orm

from flask_credly import Course
from flask_credly import Credly
from flask_credly import Member
from flask_credly.catalog import DEFAULT_TENANT
from flask_credly.state import AppState
from flask_credly.state import Community

COURSE = Course(id="py-101", title="Python 101")
GONE = Course(id="gone", title="A course whose mapping is removed")

MAIL = "canarymail"
FIRST_NAME = "Canaryfirst"
LAST_NAME = "Canarylast"
_DOMAIN = "storm.example.org"

TROUBLED = "troubled"
"""The community that is always in trouble."""

HEADER = "X-Community"
"""Of a request: which community it is about."""


def communities(number: int) -> list[str]:
    """Name the communities. The last one is always in trouble, if there are others."""
    return (
        [DEFAULT_TENANT]
        if number == 1
        else [*(f"well-{one}" for one in range(1, number)), TROUBLED]
    )


class Base(orm.DeclarativeBase):
    """The host's own base."""


class Completed(Base):
    """A course that a member has completed."""

    __tablename__ = "completed"
    __table_args__ = (sa.UniqueConstraint("tenant", "member_id"),)

    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    tenant: orm.Mapped[str] = orm.mapped_column(
        sa.String(100), default=DEFAULT_TENANT, server_default=DEFAULT_TENANT
    )
    member_id: orm.Mapped[str] = orm.mapped_column(sa.String(100))
    status: orm.Mapped[str] = orm.mapped_column(sa.String(20), default="done")
    """Only the plain RQ job uses it."""


class Half(Base):
    """One of the two rows, "first" and "second", that a transaction writes before and
    after it completes courses: both are kept, or neither.
    """

    __tablename__ = "half"

    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    name: orm.Mapped[str] = orm.mapped_column(sa.String(100))
    half: orm.Mapped[str] = orm.mapped_column(sa.String(10))


@dataclasses.dataclass
class Host:
    """The application and what belongs to it."""

    app: Flask
    db: SQLAlchemy
    tenants: list[str]

    @property
    def has_communities(self) -> bool:
        return self.tenants != [DEFAULT_TENANT]

    def state_of(self, tenant: str) -> Community:
        state: AppState = self.app.extensions["credly"]
        return state.of(tenant)

    @contextlib.contextmanager
    def request_of(self, tenant: str) -> cabc.Iterator[None]:
        """A request in a community, which its header names. With only one there is
        none: the context of the application is enough.
        """
        if self.has_communities:
            with self.app.test_request_context(headers={HEADER: tenant}):
                yield
        else:
            yield

    def named(self, tenant: str) -> dict[str, str]:
        """What names the community of a completion outside of a request."""
        return {"tenant": tenant} if self.has_communities else {}


def make_host(config: cabc.Mapping[str, t.Any]) -> Host:
    """Make the application."""
    app = Flask("storm_host")
    app.config.update(config)
    db = SQLAlchemy(model_class=Base)
    credly = Credly()
    credly.courses(lambda: [COURSE, GONE])
    credly.is_admin(lambda: True)
    host = Host(app, db, config.get("STORM_TENANTS", [DEFAULT_TENANT]))

    if host.has_communities:
        credly.tenant(lambda: request.headers.get(HEADER))

    db.init_app(app)
    credly.init_app(app)
    return host


def domain_of(tenant: str) -> str:
    """The end of the addresses of a community's members."""
    return f"@{tenant}.{_DOMAIN}"


def member(member_id: str, tenant: str = DEFAULT_TENANT) -> Member:
    """Make a member whose data would be noticed where they do not belong."""
    return Member(
        id=member_id,
        email=f"{MAIL}-{member_id}{domain_of(tenant)}",
        first_name=FIRST_NAME,
        last_name=LAST_NAME,
    )


def member_of(email: str) -> str:
    """Find the member's id by the address."""
    return email.removeprefix(f"{MAIL}-").partition("@")[0]


class Journal:
    """What a process tried and what it was told, on disk before it goes on."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def write(
        self, what: str, tenant: str, member_id: str, course_id: str, extra: str = ""
    ) -> None:
        extra = " ".join(extra.split())[:300]
        line = (
            f"{what}\t{tenant}\t{member_id}\t{course_id}\t{time.time():.6f}\t{extra}\n"
        )
        os.write(self._file, line.encode())
        os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A line of a journal."""

    what: str
    tenant: str
    member_id: str
    course_id: str
    at: float
    extra: str


def read_journal(path: str) -> list[Entry]:
    """Read a journal, without a line that was cut."""
    try:
        with open(path) as file:
            lines = file.read().split("\n")[:-1]
    except FileNotFoundError:
        return []

    entries = []

    for line in lines:
        what, tenant, member_id, course_id, at, extra = line.split("\t")
        entries.append(Entry(what, tenant, member_id, course_id, float(at), extra))

    return entries
