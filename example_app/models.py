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

DEFAULT = "default"
"""What Flask-Credly calls the one community of a platform that has no others."""

NAMES = {DEFAULT: "Gradual", "north": "Gradual North", "south": "Gradual South"}


class Person(Base):
    """A member or the admin of a community, or the operator, who is in none."""

    __tablename__ = "person"

    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    community: orm.Mapped[str | None]
    email: orm.Mapped[str]
    first_name: orm.Mapped[str]
    last_name: orm.Mapped[str]
    is_admin: orm.Mapped[bool] = orm.mapped_column(default=False)

    @property
    def is_operator(self) -> bool:
        return self.community is None


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
            Person(email="ola@example.org", first_name="Ola", last_name="Operator")
        )

    db.session.commit()


def _add_first(community: str) -> None:
    _add(
        community,
        [
            Person(email="admin@example.org", first_name="Alex", last_name="Admin"),
            Person(email="ada@example.org", first_name="Ada", last_name="Example"),
            Person(email="ben@example.org", first_name="Ben", last_name="Example"),
            Person(email="cleo@example.org", first_name="Cleo", last_name="Example"),
            Person(email="dan@example.org", first_name="Dan", last_name=""),
        ],
        [
            Course(id="py-101", title="Python 101"),
            Course(id="sql", title="SQL basics"),
            Course(id="html", title="HTML and CSS"),
            Course(id="testing", title="Testing with pytest"),
            Course(id="data", title="Data path", kind="learning_path"),
            Course(id="web", title="Web path", kind="learning_path"),
        ],
    )


def _add_second(community: str) -> None:
    """One course has the same id as in the first, and one person is in both."""
    _add(
        community,
        [
            Person(email="toni@example.org", first_name="Toni", last_name="Admin"),
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
    people[0].is_admin = True

    for person in people:
        person.community = community

    for course in courses:
        course.community = community

    db.session.add_all([*people, *courses])
