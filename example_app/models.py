"""Members, courses, and who is enrolled in what."""

from __future__ import annotations

import datetime as dt
import time
import typing as t

import sqlalchemy as sa
from flask import current_app
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import orm


class Base(orm.DeclarativeBase):
    """The host's own base."""


db = SQLAlchemy(model_class=Base)
Kind = t.Literal["course", "learning_path"]
Role = t.Literal["member", "admin", "coordinator", "viewer", "operator"]

DEFAULT = "default"
"""What Flask-Credly calls the one community of a platform that has no others."""

NAMES = {DEFAULT: "Gradual", "north": "Gradual North", "south": "Gradual South"}


PAST_MEMBERS = 500
"""How many members completed a course before it gave a badge."""


class Person(Base):
    """Who has an account: somebody of a community, or the operator, who is in none.

    A coordinator is an admin who may not take back badges, a viewer sees the admins'
    pages and changes nothing.
    """

    __tablename__ = "person"

    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    community: orm.Mapped[str | None]
    email: orm.Mapped[str]
    first_name: orm.Mapped[str]
    last_name: orm.Mapped[str]
    role: orm.Mapped[Role] = orm.mapped_column(sa.String(20), default="member")
    # Whether a visitor can choose to be this person: not each of 500.
    is_listed: orm.Mapped[bool] = orm.mapped_column(default=True)

    @property
    def is_admin(self) -> bool:
        return self.role in ("admin", "coordinator")

    @property
    def is_viewer(self) -> bool:
        return self.role == "viewer"

    @property
    def may_revoke(self) -> bool:
        return self.role == "admin"

    @property
    def is_operator(self) -> bool:
        return self.role == "operator"


class Course(Base):
    """A course or a learning path. Another community may have one of the same id."""

    __tablename__ = "course"

    community: orm.Mapped[str] = orm.mapped_column(primary_key=True)
    id: orm.Mapped[str] = orm.mapped_column(primary_key=True)
    title: orm.Mapped[str]
    kind: orm.Mapped[Kind] = orm.mapped_column(sa.String(20), default="course")


class Enrolment(Base):
    """A member's way through a course. Complete once ``completed_at`` is set."""

    __tablename__ = "enrolment"

    person_id: orm.Mapped[int] = orm.mapped_column(
        sa.ForeignKey(Person.id), primary_key=True
    )
    community: orm.Mapped[str] = orm.mapped_column(primary_key=True)
    course_id: orm.Mapped[str] = orm.mapped_column(primary_key=True)
    completed_at: orm.Mapped[dt.datetime | None]
    completion_id: orm.Mapped[str | None] = orm.mapped_column(sa.String(36))

    __table_args__ = (
        sa.ForeignKeyConstraint([community, course_id], [Course.community, Course.id]),
    )


def communities() -> list[str]:
    """Get the ids of all communities, in the order of their organizations at Credly."""
    return ["north", "south"] if current_app.config["COMMUNITIES"] > 1 else [DEFAULT]


def create_example_data() -> None:
    """Create the tables, and fill them if they are empty. Processes that begin at once
    do not disturb each other.
    """
    until = time.monotonic() + 10

    while True:
        try:
            return _create_example_data()
        except sa.exc.DatabaseError:
            # Another process was faster. What it has made is found next time.
            db.session.rollback()

            if time.monotonic() > until:
                raise

            time.sleep(0.1)


def _create_example_data() -> None:
    db.create_all()

    if db.session.query(Person).first():
        return

    first, *others = communities()
    _add_first(first)

    for each in others:
        _add_second(each)

    if others:
        db.session.add(
            Person(
                email="ola@example.org",
                first_name="Ola",
                last_name="Operator",
                role="operator",
            )
        )

    db.session.commit()


def _add_first(community: str) -> None:
    _add(
        community,
        [
            Person(
                email="admin@example.org",
                first_name="Alex",
                last_name="Admin",
                role="admin",
            ),
            Person(email="ada@example.org", first_name="Ada", last_name="Example"),
            Person(email="ben@example.org", first_name="Ben", last_name="Example"),
            Person(email="cleo@example.org", first_name="Cleo", last_name="Example"),
            Person(email="dan@example.org", first_name="Dan", last_name=""),
            Person(
                email="carol@example.org",
                first_name="Carol",
                last_name="Coordinator",
                role="coordinator",
            ),
            Person(
                email="vera@example.org",
                first_name="Vera",
                last_name="Viewer",
                role="viewer",
            ),
        ],
        [
            Course(id="py-101", title="Python 101"),
            Course(id="sql", title="SQL basics"),
            Course(id="html", title="HTML and CSS"),
            Course(id="access", title="Accessibility basics, to be repeated each year"),
            Course(id="flask", title="Flask foundations"),
            Course(id="testing", title="Testing with pytest"),
            Course(id="data", title="Data path", kind="learning_path"),
            Course(id="web", title="Web path", kind="learning_path"),
        ],
    )
    _add_past(community, "flask")


def _add_past(community: str, course_id: str) -> None:
    """Add members who completed a course before it gave a badge, one each hour."""
    members = [
        Person(
            community=community,
            email=f"member{number}@example.org",
            first_name="Member",
            last_name=str(number),
            is_listed=False,
        )
        for number in range(1, PAST_MEMBERS + 1)
    ]
    db.session.add_all(members)
    db.session.flush()
    first = dt.datetime.now(dt.UTC) - dt.timedelta(hours=PAST_MEMBERS)
    db.session.add_all(
        Enrolment(
            person_id=member.id,
            community=community,
            course_id=course_id,
            completed_at=first + dt.timedelta(hours=number),
        )
        for number, member in enumerate(members)
    )


def _add_second(community: str) -> None:
    """One course has the same id as in the first, and one person is in both."""
    _add(
        community,
        [
            Person(
                email="toni@example.org",
                first_name="Toni",
                last_name="Admin",
                role="admin",
            ),
            Person(email="ada@example.org", first_name="Ada", last_name="Example"),
            Person(email="eve@example.org", first_name="Eve", last_name="Example"),
        ],
        [
            Course(id="py-101", title="Python for data"),
            Course(id="writing", title="Writing for the web"),
            Course(id="access", title="Accessibility basics"),
        ],
    )


def _add(community: str, people: list[Person], courses: list[Course]) -> None:
    for person in people:
        person.community = community

    for course in courses:
        course.community = community

    db.session.add_all([*people, *courses])
